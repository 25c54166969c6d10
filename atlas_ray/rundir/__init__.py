"""The run directory: what is written into it, and how.

`files.py` is the one to begin with: atomic files, append-only JSONL, metrics and events. `disk.py` says what a full
disk means, `logs.py` and `tracking.py` where words and numbers go, `progress.py` what a person sees. May import
`errors` only.
"""
