"""tiny-quick with other weights: all of them, or an adapter over it."""

import torch
from peft import LoraConfig, get_peft_model

from atlas_ray.models.loading import load_model, load_tokenizer


def save_tuned(folder, seed=0):
    """Write tiny-quick with noise on all of its weights."""
    model, noise = load_model("tiny-quick"), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder)
    load_tokenizer("tiny-quick").save_pretrained(folder)


def save_adapter(folder, rank):
    """Write an adapter over tiny-quick that does something."""
    torch.manual_seed(rank)
    config = LoraConfig(r=rank, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapter = get_peft_model(load_model("tiny-quick"), config)
    adapter.peft_config["default"].base_model_name_or_path = "tiny-quick"
    adapter.save_pretrained(folder)
