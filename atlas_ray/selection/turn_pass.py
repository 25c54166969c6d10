"""What a model computes at the tokens of every turn, in one pass over each whole trajectory, many trajectories a pass.

From it follow numbers of every step (perplexity, entropy), and which steps have the highest. Prompts are prefixes of
the training sequence, so this equals asking behind every prompt of every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..agents.rendering import Rendered, Renderer
from ..data.records import Annotation, Trajectory, max_critical_steps
from ..models.loading import context_of


@dataclass(frozen=True)
class TurnPass:
    """The turns of one trajectory, T of them with N tokens in all: thought, separator, action and end of turn.

    Attributes:
        states_NH: what goes into the LM head before each token. The first of a turn stands behind the prompt of its
            step, the last one behind its action.
        logits_NV: of each token.
        targets_N: the tokens.
        lengths: tokens of each turn.
    """

    states_NH: torch.Tensor
    logits_NV: torch.Tensor
    targets_N: torch.Tensor
    lengths: tuple[int, ...]


Measure = Callable[[TurnPass, Renderer, Trajectory], list[float]]
"""A number for each of the T steps of a trajectory."""
_PLURALS = {"perplexity": "perplexities", "entropy": "entropies"}


def measured_steps(
    model: Any,
    renderer: Renderer,
    trajectories: Sequence[Trajectory],
    measures: Mapping[str, Measure],
    micro_tokens: int = 4096,
    asked: int | None = None,
    field: str = "finetune.context",
) -> tuple[dict[str, dict[str, list[float]]], list[str]]:
    """Numbers of every step, in one pass over each whole trajectory, many trajectories to a pass.

    Args:
        model: a loaded causal LM in evaluation mode, on the device where it shall run.
        renderer: of the model's tokenizer.
        trajectories: with distinct ids.
        measures: by name.
        micro_tokens: most tokens, padding included, of a pass over more than one trajectory.
        asked: most tokens of a trajectory where the model's configuration states none.
        field: of the recipe that says so.

    Returns:
        (numbers, problems): by measure, T numbers for each trajectory id, in the order of ``trajectories``; why others
        have none, because they are longer than the model's context or because it gives no finite numbers.

    Raises:
        InputError: nobody says how long a trajectory may be.
    """
    passes, long = turn_passes(model, renderer, trajectories, micro_tokens, context_of(model, asked, field))
    problems = [f"{why}, so it has no {' and '.join(_PLURALS.get(m, m) for m in measures)}" for why in long]
    by_id, found = {t.id: t for t in trajectories}, dict[str, dict[str, list[float]]]()
    for name, turns in passes:
        for kind, measure in measures.items():
            found.setdefault(kind, {})[name] = measure(turns, renderer, by_id[name])
    for kind, numbers in found.items():
        for name in [name for name, each in numbers.items() if not all(map(math.isfinite, each))]:
            step = next(t for t, number in enumerate(numbers.pop(name)) if not math.isfinite(number))
            problems.append(f"{name}: the model gives step {step} no finite {kind}")
    ordered = {kind: found.get(kind, {}) for kind in measures}
    return {kind: {t.id: n[t.id] for t in trajectories if t.id in n} for kind, n in ordered.items()}, problems


def mark_highest(
    trajectory: Trajectory, numbers: Sequence[float], fraction: float, selector: str, model: str, reason: str
) -> Annotation:
    """The ``max_critical_steps(fraction, T)`` steps of the highest numbers; the earlier wins ties.

    ``reason``: says of a step why, with its number: ``"perplexity {:.1f}"``.
    """
    ranked = sorted(range(len(trajectory.steps)), key=lambda t: (-numbers[t], t))
    critical = sorted(ranked[: max_critical_steps(fraction, len(ranked))])
    return Annotation(
        trajectory_id=trajectory.id,
        selector=selector,
        fraction=fraction,
        critical=tuple(critical),
        reasons={t: reason.format(numbers[t]) for t in critical},
        model=model,
    )


def turn_passes(
    model: Any, renderer: Renderer, trajectories: Sequence[Trajectory], micro_tokens: int, context: int
) -> tuple[Iterator[tuple[str, TurnPass]], list[str]]:
    """What the model computes at the tokens of the turns of each trajectory.

    Args:
        model: a loaded causal LM in evaluation mode, on the device where it shall run.
        renderer: of the model's tokenizer.
        trajectories: with distinct ids.
        micro_tokens: most tokens, padding included, of a pass over more than one trajectory.
        context: most tokens of a trajectory.

    Returns:
        (passes, problems): trajectory ids, shorter ones first, each with its turns, computed as they are asked for; why
        others are not among them.
    """
    rendered = {t.id: renderer.render(t) for t in trajectories}
    long = {name: len(whole.ids) for name, whole in rendered.items() if len(whole.ids) > context}
    problems = [f"{name}: has {size} tokens, the model takes {context}" for name, size in long.items()]

    def passes() -> Iterator[tuple[str, TurnPass]]:
        for names in _groups({n: r for n, r in rendered.items() if n not in long}, micro_tokens):
            yield from zip(names, _pass(model, [rendered[name] for name in names], renderer.end_of_turn), strict=True)

    return passes(), problems


def _groups(rendered: Mapping[str, Rendered], micro_tokens: int) -> list[list[str]]:
    """Ids in groups of like length, each at most ``micro_tokens`` with its padding unless it holds only one."""
    groups: list[list[str]] = []
    for name in sorted(rendered, key=lambda name: len(rendered[name].ids)):
        if groups and (len(groups[-1]) + 1) * len(rendered[name].ids) <= micro_tokens:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


@torch.inference_mode()
def _pass(model: Any, batch: Sequence[Rendered], pad: int) -> list[TurnPass]:
    device = next(model.parameters()).device
    # right padding plus causal attention: no real token sees padding, so no mask is needed
    ids_BL = torch.full((len(batch), max(len(r.ids) for r in batch)), pad)
    for row, episode in enumerate(batch):
        ids_BL[row, : len(episode.ids)] = torch.tensor(episode.ids)
    ids_BL = ids_BL.to(device)
    where = [(row, position) for row, r in enumerate(batch) for start, end in r.spans for position in range(start, end)]
    row_N, position_N = torch.tensor(where, device=device).T
    states: list[torch.Tensor] = []

    def keep(head: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        states.append(given[0][row_N, position_N - 1])
        return (states[-1][None],)

    # the head sees only the states behind which a turn's token stands; scaled or capped logits stay the model's affair
    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        logits_NV = model(input_ids=ids_BL, use_cache=False).logits[0]
    finally:
        hook.remove()
    lengths = [tuple(end - start for start, end in r.spans) for r in batch]
    sizes = [sum(each) for each in lengths]
    parts = (states[0].split(sizes), logits_NV.split(sizes), ids_BL[row_N, position_N].split(sizes), lengths)
    return [TurnPass(*each) for each in zip(*parts, strict=True)]
