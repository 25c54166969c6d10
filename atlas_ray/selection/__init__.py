"""ATLaS selection: which steps of an expert trajectory are critical, and the controls to compare with.

`stage.py` is the one to begin with: it runs every selector of a recipe. `value.py` (roll-outs of a model),
`perplexity.py` and `entropy.py` score steps, run by `scored_stage.py` on Ray; `replays.py` brings environments to the
states they need; `deviation.py` weighs the base's own moves (`deviation_stage.py`).
`verified.py` plays on from failed episodes behind another action (`verified_play.py`, `verified_stage.py`).
The oracle asks a language model: `oracle.py` with `oracle_task.py`, `oracle_prompt.py`, `oracle_answer.py`,
`oracle_stop.py` and `chat_backend.py`, run by `oracle_stage.py`. `controls.py` and `ensembles.py` need no model,
`agreement.py` compares selectors, `start_after.py` tests them without training. May import `agents` and below.
"""

from .stage import select

__all__ = ["select"]
