"""What the tests of fine-tuning share: small models and examples, the naive loss, and runs that are killed."""

import random

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from atlas_ray.finetune.data import Example
from atlas_ray.finetune.loop import train_run
from atlas_ray.finetune.loss import MaskedModel, Scale
from atlas_ray.finetune.packing import causal_lm
from atlas_ray.models.tiny import build_model, build_tokenizer, vocabulary
from atlas_ray.recipe.loading import Arm, Finetune
from atlas_ray.trajectory import Annotation, Step, Trajectory

TOKENIZER = build_tokenizer()
SIZE = len(vocabulary())


def tiny(seed=0):
    return build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=seed)


def sharp(kind, seed=0, **changes):
    """A small random model of a family whose attention is far from even, with grouped heads; no weight is 0 or 1."""
    sizes = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 2,
    }
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**sizes, **changes}))
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


def with_adapters(model, seed=0, dropout=0.0, targets="all-linear"):
    """A peft model around ``model`` whose adapters already change something."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return adapted


def random_examples(count, seed=0, anchored=True, longest=30):
    """Examples of unlike length, with scattered positions; some have nothing anchored."""
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        length = rng.randint(4, longest)
        ids = tuple(rng.randrange(SIZE) for _ in range(length))
        positions = rng.sample(range(1, length), rng.randint(1, length - 1))
        split = rng.randint(1, len(positions))
        off = tuple(sorted(positions[split:])) if anchored else ()
        examples.append(Example(ids, tuple(sorted(positions[:split])), off, rng.randint(0, 9)))
    return examples


def counts(examples):
    return sum(len(e.trained) for e in examples), sum(len(e.anchored) for e in examples)


def scale_of(examples, anchor=0.0):
    trained, anchored = counts(examples)
    return Scale(1 / trained, anchor / anchored if anchored else 0.0)


def naive_loss(model, examples, anchor=0.0, base=None):
    """One sequence at a time, every logit, one position after the other, in float64."""
    trained, anchored = counts(examples)
    device = next(model.parameters()).device
    nll = torch.zeros((), dtype=torch.float64, device=device)
    divergence = torch.zeros((), dtype=torch.float64, device=device)
    for example in examples:
        ids = torch.tensor([example.ids], device=device)
        logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        for position in example.trained:
            nll = nll - logp[position - 1, example.ids[position]]
        if anchor:
            with torch.no_grad():
                base_logp = base(input_ids=ids).logits[0].double().log_softmax(-1)
            for position in example.anchored:
                p, q = base_logp[position - 1], logp[position - 1]
                divergence = divergence + (p.exp() * (p - q)).sum()
    loss = nll / trained
    return loss + anchor * divergence / anchored if anchor and anchored else loss


def fast_loss(masked, examples, anchor=0.0, groups=None):
    """The loss of :class:`MaskedModel`, of a model or of one that is made; call it within :func:`packed`."""
    masked = masked if isinstance(masked, MaskedModel) else MaskedModel(masked)
    scale = scale_of(examples, anchor)
    return sum(masked(group, scale) for group in groups or [examples])


def gradients(model, loss):
    """The gradient of ``loss`` at all that is trained, in one row."""
    model.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


def trajectory(name, steps):
    return Trajectory(
        id=name,
        env="e",
        task="t",
        seed=0,
        instruction="go to the red ball",
        steps=tuple(
            Step(observation=f"You see a red ball {i + 2} steps forward", thought="explore", action="go forward")
            for i in range(steps)
        ),
        score=1,
        success=True,
        source="expert",
    )


def note(name, *critical):
    return Annotation(trajectory_id=name, selector="value", fraction=0.5, critical=critical)


def config(**changes):
    return Finetune(
        arms=[Arm(selector="all")],
        **{"batch_size": 4, "micro_tokens": 80, "learning_rate": 3e-3, "save_every": 2, **changes},
    )


def weights(model):
    return torch.cat([p.detach().flatten() for p in causal_lm(model).parameters()])


def trained(path, examples, steps=9, seed=0, model=None, anchor=0.0, **given):
    """A model and its counts after :func:`train_run`; what is no argument of that changes the recipe."""
    hooks = {key: given.pop(key) for key in ("on_step", "validate", "keep", "group") if key in given}
    model = model or tiny()
    return model, train_run(model, examples, config(**given), steps, seed, path, anchor=anchor, **hooks)


class KilledError(Exception):
    """Stands for a kill."""


def killed_after(step):
    def on_step(progress):
        if progress.step == step:
            raise KilledError

    return on_step
