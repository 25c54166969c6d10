"""ATLaS fine-tuning: the whole trajectory is the context, the loss is computed on the selected steps only.

`stage.py` is the one to begin with: it trains every arm and seed, here or by Ray Train. `run.py` is one of them from
files to checkpoint, `loop.py` its loop, `trainer.py` one optimiser step, `loss.py` the masked loss, `packing.py` many
sequences in one row. `pairs.py` and `preference.py` do the same for pairs of turns (DPO). `inputs.py`, `store.py`,
`base_logps.py` and `data.py` make the examples, `process_group.py` lets several workers train one model, `state.py` is
what a killed run goes on from, `output.py` and `card.py` what a run leaves, `counts.py` and `flops.py` what it took.
May import `agents` and below.
"""

from .inputs import refuse_other_base
from .run import checkpoint_dir
from .stage import finetune

__all__ = ["checkpoint_dir", "finetune", "refuse_other_base"]
