"""One optimiser step: the model of a run, its masked loss and its optimiser, on one process or many."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import DivergedError, EmptySelectionError, InputError
from ..recipe.loading import Finetune, Pairs
from .counts import anchored_tokens, trained_tokens
from .data import Example, Trained
from .loss import MaskedModel, Scale, packs_whole
from .packing import attention_of, causal_lm, packed
from .preference import NOTED, PairScale, PreferenceModel, pair_scale
from .process_group import ProcessGroup, share_model, sync, use_bf16
from .shares import read_shares
from .state import load_state, save_state


class Taken(NamedTuple):
    """An optimiser step: loss and norm of the gradient over all workers, and what else the loss says by name."""

    loss: float
    norm: float
    noted: dict[str, float]


class Trainer:
    """A model that is trained in place; every worker of the group has one, and calls the same methods.

    Args:
        model: a causal LM, or a peft model around one, on the group's device.
        examples: asked whether they hold the base's log-probabilities.
        config: of the recipe.
        anchor: weight of the KL divergence to the base at anchored tokens (ours).
        group: the workers that train this model.
        pairs: the loss of examples that are pairs; None where they are none.
        unread: the directory of the weights of a ``model`` that has none yet, see :mod:`atlas_ray.finetune.shares`.

    Attributes:
        model: the causal LM itself, which holds the adapters if there are any.
        attention: how the sequences of a pass attend, in words.
        narrow: whether the last layer's MLP is computed at the trained and anchored positions only.

    Raises:
        InputError: FSDP2 cannot shard this kind of model, or its weights cannot be read.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[Trained],
        config: Finetune,
        anchor: float,
        group: ProcessGroup,
        pairs: Pairs | None = None,
        unread: Path | None = None,
    ) -> None:
        self.config, self.anchor, self.group, self.pairs = config, anchor, group, pairs
        self.model = causal_lm(model)
        self.narrow = packs_whole(self.model)
        base = _base(model, self.model, examples) if anchor else None
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self._sharded = config.strategy == "fsdp" and group.size > 1
        self._whole = self._sharded and config.accumulate == "whole"
        if self._sharded and not self.narrow:
            raise InputError(
                f"FSDP2 workers must pass together, and a {self.model.config.model_type} model, or one with an adapter "
                'on its LM head, is trained one sequence at a time here: use finetune.strategy = "ddp"'
            )
        whole: PreferenceModel | MaskedModel
        whole = PreferenceModel(self.model, pairs) if pairs else MaskedModel(self.model, base, self._sharded)
        self._base = whole.base
        layers = [part for part in whole.modules() if type(part).__name__ in (self.model._no_split_modules or ())]
        bf16 = use_bf16(config.precision, group.device)
        self._autocast = bf16 and not self._sharded  # (FSDP2 casts the weights that it gathers)
        self._module = share_model(whole, layers, group, config.strategy, bf16)
        self.attention = attention_of(self.model, group.device, torch.bfloat16 if bf16 else torch.float32)
        if unread is not None:
            read_shares(self._module, [part for part in (self.model, self._base) if part is not None], unread, group)
        self._optimizer = torch.optim.AdamW(
            self._parameters(),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def load(self, state_dir: Path) -> dict[str, Any] | None:
        """Go on from the newest state under ``state_dir``; returns what was saved with it, None without a state."""
        return load_state(state_dir, self.model, self._optimizer, self.group)

    def save(self, state_dir: Path, about: dict[str, Any]) -> None:
        """Save the state, and ``about`` with it.

        Raises:
            StorageError: it could not be written.
        """
        save_state(state_dir, self.model, self._optimizer, self.group, self._sharded, about)

    def step(
        self, step: int, chosen: Sequence[Trained], plan: list[list[list[int]]], learning_rate: float, seed: int
    ) -> Taken:
        """Take the optimiser step ``step`` (from 0).

        Args:
            step: its number.
            chosen: its sequences.
            plan: which worker reads which of them in which micro-batch.
            learning_rate: of this step.
            seed: of dropout.

        Raises:
            EmptySelectionError: no token is trained.
            DivergedError: the loss or the gradient is NaN or infinite.
        """
        scale = pair_scale(chosen, self.pairs) if self.pairs else _scale(chosen, self.anchor, step)
        for parameters in self._optimizer.param_groups:
            parameters["lr"] = learning_rate
        # dropout must not depend on what was drawn before, or a resumed run would differ
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + self.group.rank)
        self._optimizer.zero_grad(set_to_none=True)
        mine = [[chosen[i] for i in places] for places in plan[self.group.rank]]
        with packed(self.model), packed(self._base):
            loss, *noted = self._backward(mine, chosen[0], scale)
        norm = float(_whole(nn.utils.clip_grad_norm_(self._parameters(), self.config.clip)))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(_diverged(step, loss, norm, self.config))
        self._optimizer.step()
        return Taken(loss, norm, dict(zip(NOTED, noted, strict=False)))

    def turn_reader(self) -> Callable[[Sequence[Example]], torch.Tensor]:
        """:meth:`~atlas_ray.finetune.preference.PreferenceModel.turn_logps` of a model that is read, not trained.

        Where it is shared out, every worker calls the function as often. Ask for it once.
        """
        if self._sharded:
            from torch.distributed.fsdp import register_fsdp_forward_method

            register_fsdp_forward_method(self._module, "turn_logps")
        self.model.eval()

        @torch.no_grad()
        def read(batch: Sequence[Example]) -> torch.Tensor:
            with packed(self.model), torch.autocast(self.group.device.type, torch.bfloat16, enabled=self._autocast):
                logps: torch.Tensor = self._module.turn_logps(batch)
            return logps

        return read

    def _backward(self, mine: list[list[Trained]], spare: Trained, scale: Scale | PairScale) -> list[float]:
        """Forward and backward passes of this worker's micro-batches.

        Returns:
            The loss of the whole group, and behind it what else the model says.
        """
        total = torch.zeros(1 + len(NOTED) if self.pairs else 1, device=self.group.device)
        nothing = PairScale(0.0, 0.0) if self.pairs else Scale(0.0, 0.0)
        for i, micro in enumerate(mine):
            with sync(self._module, i + 1 == len(mine), self._whole):
                with torch.autocast(self.group.device.type, torch.bfloat16, enabled=self._autocast):
                    # a worker without a sequence of its own must still pass with the others
                    said = self._module(micro, scale) if micro else self._module([spare], nothing)
                    said = said.reshape(-1)
                # gradients become the mean over the workers, and shares are to be added
                (said[0] * self.group.size).backward()
            total += said.detach()
        return [float(value) for value in self.group.sum(total)]


def _whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _base(model: Any, inner: Any, examples: Sequence[Trained]) -> Any:
    """What the anchor holds to: the adapters switched off, nothing where log-probabilities were kept, or a copy."""
    if model is not inner:
        return model
    if getattr(examples, "base", None) is not None:
        return None
    return copy.deepcopy(inner).eval().requires_grad_(False)


def _scale(chosen: Sequence[Trained], anchor: float, step: int) -> Scale:
    trained, anchored = trained_tokens(chosen), anchored_tokens(chosen)
    if not trained:
        raise EmptySelectionError(
            f"optimiser step {step} has no token to train: its {len(chosen)} episodes have no selected step. "
            "Select more (select.fraction), or raise finetune.batch_size"
        )
    return Scale(1 / trained, anchor / anchored if anchor and anchored else 0.0)


def _diverged(step: int, loss: float, norm: float, config: Finetune) -> str:
    what = f"optimiser step {step + 1}: the loss is {loss}, the gradient's norm {norm}"
    if step == 0:
        return (
            f"{what}, in the first step: likely the base's weights hold NaN or its passes overflow. Try "
            'finetune.precision = "float32", or another finetune.base'
        )
    return (
        f"{what}: likely the learning rate is too high. Lower finetune.learning_rate (it is "
        f"{config.learning_rate:g}), or lengthen finetune.warmup (it is {config.warmup:g})"
    )
