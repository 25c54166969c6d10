"""Recipes: what a run does, in TOML.

`loading.py` reads one, and is the file to begin with; `schema.py` has the whole recipe, and `collect`, `select`,
`finetune`, `switch`, `sweep` and `endpoint` a table each. Every field's docstring becomes its help. May import `data`,
`errors` and `envs`, and neither torch nor Ray, so that `--help` and `--dry-run` are quick.
"""

from .loading import Recipe, load, shipped

__all__ = ["Recipe", "load", "shipped"]
