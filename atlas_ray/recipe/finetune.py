"""The fields of `[finetune]`: masked fine-tuning."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import ConfigModel, Positive
from .select import SELECTORS, Selector, is_own


class Arm(ConfigModel):
    """One way to train: the steps of a selector, with or without an anchor."""

    selector: Selector
    """Whose steps carry the loss."""
    anchor: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence to the base model on the unselected action tokens (ours)."""
    pairs: bool = False
    """Train on the selector's pairs of turns, by `[finetune.pairs]`, instead of its steps."""

    @property
    def name(self) -> str:
        """Name of the arm in files and tables."""
        if self.pairs:
            return f"{self.selector}+pairs"
        return self.selector if not self.anchor else f"{self.selector}+anchor{self.anchor:g}"


class NewModel(ConfigModel):
    """A new Llama-shaped model, instead of a base."""

    hidden: Positive
    """Width."""
    layers: Positive
    """Depth."""
    heads: Positive
    """Attention heads."""
    intermediate: Positive
    """Width of the MLP."""
    words: int = Field(default=0, ge=0)
    """Most words of the trajectories that become tokens, the frequent ones first; without any the model knows BabyAI's
    words alone."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden: {self.hidden} is no multiple of twice the {self.heads} heads")
        return self


Scratch = NewModel
"""The name of the release before, which pickles may hold."""


class Lora(ConfigModel):
    """Low-rank adapters instead of all weights (peft)."""

    rank: Positive = 16
    """Rank of the adapters."""
    alpha: Positive = 32
    """Their scale is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before an adapter."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which matrices get one: all but the LM head, or those of these names."""


class Pairs(ConfigModel):
    """How arms with `pairs = true` are trained: direct preference optimisation on two turns of the same history."""

    files: dict[str, str] = {}
    """Pairs of your own: a name for an arm's `selector`, and its file, here or on the hub as in `collect.file`."""
    loss: Literal["sigmoid", "sigmoid_norm"] = "sigmoid"
    """By TRL's names: `sigmoid` is DPO; `sigmoid_norm` divides each turn's log-ratio by its tokens."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the model is held to its base; `sigmoid_norm` needs a larger one (Tulu 3: 5)."""
    sft: float = Field(default=0.0, ge=0)
    """Weight of the mean cross entropy of the chosen turns' tokens, beside it."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Of these arms; without it that of all."""
    epochs: Positive | None = None
    """Passes over the pairs; without it as many as over trajectories."""

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        for name in self.files:
            if name in SELECTORS or not is_own(name):
                raise ValueError(f"files: {name!r} must be a new name of small letters, digits and hyphens")
        return self


class Validation(ConfigModel):
    """Held-in episodes played during training; the best weights are kept, and training may stop early."""

    every: Positive = 100
    """Optimiser steps between validations."""
    episodes: Positive = 32
    """Episodes of each held-in level; their seeds are neither those of training nor those of the scores."""
    patience: Positive | None = None
    """Validations without a better score after which training stops; without it it never does."""


class Tuning(ConfigModel):
    """How a model is tuned, whatever it is tuned from and on."""

    renamed: ClassVar[dict[str, str]] = {"too_long": "truncation", "emptied": "on_all_truncated"}

    lora: Lora | None = None
    """Train adapters; without this table all weights."""
    epochs: Positive = 2
    """Passes over the trajectories."""
    batch_size: Positive = 32
    """Trajectories an optimiser step, over all workers."""
    micro_tokens: Positive = 4096
    """Most tokens in one forward pass of a worker; only a single longer trajectory exceeds it."""
    context: Positive | None = None
    """Longest trajectory in tokens; without it what the model takes."""
    truncation: Literal["error", "drop_last_steps", "drop_first_steps"] = "error"
    """What a trajectory that is longer loses: whole steps of its end or of its beginning, never a part of a step."""
    on_all_truncated: Literal["error", "skip"] = "error"
    """What a trajectory that loses all its critical steps by that is: an error, or left out and counted."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: to zero in a line or half a cosine, or constant."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps that warm up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Numbers of the passes: `auto` is bfloat16 on a GPU that has it, else float32. Weights and AdamW stay float32."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    workers: int = Field(default=1, ge=0)
    """Ray Train workers of a model; 0 trains all models in turn in this process, on its GPU if there is one."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Every worker holds the model (DDP), or a share of each matrix (FSDP2)."""
    accumulate: Literal["scattered", "whole"] = "scattered"
    """What FSDP2's workers keep of gradients between the passes of an optimiser step: `scattered`, a share each,
    exchanged in every pass; `whole`, all of them in float32, exchanged in the last pass only."""
    parallel: Literal["auto"] | Positive = "auto"
    """Models trained side by side, each by `workers` workers; `auto`: as many as there are CPUs or GPUs for."""
    save_every: Positive = 200
    """Optimiser steps between saved training states, from which a killed run goes on."""
    save_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the checkpoints."""
    validation: Validation | None = None
    """Held-in score during training."""

    @property
    def adapter_rank(self) -> int:
        """Rank of the adapters that are trained; 0 where all weights are."""
        return self.lora.rank if self.lora else 0

    @model_validator(mode="after")
    def _shared_out(self) -> Self:
        if self.strategy == "fsdp" and not self.workers:
            raise ValueError("strategy: fsdp shares a model out among workers, and workers is 0")
        if self.accumulate == "whole" and (self.strategy == "ddp" or self.workers == 1):
            why = "DDP" if self.strategy == "ddp" else "one worker"
            raise ValueError(
                f'accumulate: whole is for strategy = "fsdp" with two workers or more; {why} exchanges no gradients '
                "between passes anyway"
            )
        return self


class Finetune(Tuning):
    """Masked supervised fine-tuning on Ray Train."""

    base: str = "tiny-quick"
    """Model to start from: a shipped name, a directory or a Hugging Face id."""
    scratch: NewModel | None = None
    """Start from a new model of this shape instead of `base`."""
    arms: list[Arm] = Field(min_length=1)
    """What to train, one model an arm and seed."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Seeds of the data order, one model each."""
    pairs: Pairs = Pairs()
    """Training on pairs."""

    def of_arm(self, arm: Arm) -> Self:
        """How an arm is trained, with what `pairs` says of those that train on pairs."""
        own = {"learning_rate": self.pairs.learning_rate, "epochs": self.pairs.epochs} if arm.pairs else {}
        return self.model_copy(update={name: value for name, value in own.items() if value is not None})

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [a.name for a in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("arms: the same arm stands twice")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: the same seed stands twice")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.scratch and self.lora:
            raise ValueError("lora: adapts a base, and scratch has none")
        for number, arm in enumerate(self.arms):
            if arm.pairs and arm.anchor:
                raise ValueError(
                    f"arms.{number}.anchor: pairs are held to the base by pairs.beta; remove one of the two"
                )
            if arm.pairs and self.scratch:
                raise ValueError(f"arms.{number}.pairs: hold a model to its base, and scratch has none")
        return self
