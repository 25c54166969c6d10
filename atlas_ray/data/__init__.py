"""What is written to disk and what a model's turn says.

`records.py` is the one to begin with: trajectories, annotations and their JSONL. `results.py` is the schema of
`results.json`, `exchange/` the formats of the neighbours, `parsing.py` the one reader of model turns (with
`thinking.py`), `replies.py` the counts of replies by outcome. May import `errors` and `rundir`; needs neither
torch nor Ray.
"""
