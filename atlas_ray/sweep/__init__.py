"""Sweeps: trials of a recipe with other values, on Ray Tune.

`stage.py` is the one to begin with: what trials share, the trials, their scores. `trials.py` says where a trial lies
and what became of it, `tuning.py` runs trials, `shared.py` does once what they have in common, `atlas.py` and
`switch.py` are what Tune runs, `table.py` is the outcome. May import `pipeline` and below.
"""

from .stage import sweep

__all__ = ["sweep"]
