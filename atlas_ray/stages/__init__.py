"""The two small stages: expert episodes, and scores.

`collect.py` plays experts (`experts.py`) or reads a file (`collect_file.py`); `evaluate.py` scores models. The
three large stages are packages: `selection`, `finetune`, `switching`. `paths.py` looks whether what a recipe names
is there, `same_models.py` whether it still holds the same. May import those, `agents` and below.
"""
