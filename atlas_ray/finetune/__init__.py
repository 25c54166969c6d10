"""ATLaS fine-tuning: the whole trajectory is the context, the loss is computed on the selected steps only."""
