"""Directories with small models."""

from atlas_ray.models.tiny import build_model, build_tokenizer


def model_dir(path, seed=0):
    """A small model of its own."""
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=seed).save_pretrained(path)
    build_tokenizer().save_pretrained(path)
    return path
