"""ATLaS fine-tuning: the whole trajectory is the context, the loss is computed on the selected steps only."""

from .inputs import refuse_other_base
from .run import checkpoint_dir
from .stage import finetune

__all__ = ["checkpoint_dir", "finetune", "refuse_other_base"]
