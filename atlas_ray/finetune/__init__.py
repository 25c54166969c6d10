"""ATLaS fine-tuning: the whole trajectory is the context, the loss is computed on the selected steps only."""

from .stage import checkpoint_dir, finetune

__all__ = ["checkpoint_dir", "finetune"]
