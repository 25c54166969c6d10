"""The headlines of the arms: do critical steps beat random ones, do they replace all steps, and what is forgotten?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.paired import Difference, level_for
from ..data.results import Arm
from .arm_pairs import apart, critical, everything, twin
from .forgetting import Forgotten, forgotten, known_levels
from .headlines import WITHIN, Headline, is_as_good, listed, picture, tokens_saved, trained_once, with_interval
from .page import Html
from .plots import atlas_figure, svg, tokens_figure
from .reading import arm_labels
from .run import Run


def arm_headlines(run: Run) -> list[Headline]:
    """Nothing where no arm was scored."""
    if not any(arm.seeds for arm in run.arms):
        return []
    found = [_against_random(run), _against_all(run), _forgetting(run)]
    return [headline for headline in found if headline is not None]


def arm_pictures(run: Run) -> list[Html]:
    """The pictures that no headline carries."""
    if not run.arms:
        return []
    left = [] if _against_random(run) else [_arms_picture(run)]
    return left + ([] if _against_all(run) or len(run.arms) < 2 else [_tokens_picture(run)])


def _arms_picture(run: Run) -> Html:
    return picture(
        svg(atlas_figure(run.arms), "atlas", "Success of every arm"),
        "Success of every arm, with 95 % intervals, on levels it was trained on (other episodes) and on new levels.",
    )


def _tokens_picture(run: Run) -> Html:
    return picture(
        svg(tokens_figure(run.arms), "tokens", "Held-in success against trained tokens"),
        "Held-in success, with 95 % intervals, against the tokens that carried loss, over all epochs. Orange: critical "
        "steps; blue: controls; hollow: with an anchor. Dashed: the untuned model.",
    )


@dataclass(frozen=True)
class _Pair:
    """Two arms and the difference of their held-in success."""

    name: str
    arm: Arm
    other_name: str
    other: Arm
    d: Difference

    @property
    def number(self) -> str:
        return f"{self.name} less {self.other_name}: {with_interval(self.d)}"


def _pairs(run: Run, pairs: Sequence[tuple[Arm, Arm]]) -> list[_Pair]:
    """Their differences, whose intervals hold together."""
    level = level_for(len(pairs))
    names = {id(arm): name for name, arm in zip(arm_labels(run.arms), run.arms, strict=True)}
    found = ((a, b, apart(run, a, b, level=level)) for a, b in pairs)
    return [_Pair(names[id(a)], a, names[id(b)], b, d) for a, b, d in found if d is not None]


def _once(pairs: Sequence[_Pair]) -> str:
    return trained_once(arm for pair in pairs for arm in (pair.arm, pair.other))


def _against_random(run: Run) -> Headline | None:
    # as many random steps where there is such an arm, else those under the same cap
    twins = [(arm, twin(arm, run.arms, f"random_{arm.selector}", "random")) for arm in critical(run.arms)]
    pairs = _pairs(run, [(arm, other) for arm, other in twins if other is not None])
    if not pairs:
        return None
    better, worse = ([p for p in pairs if side(p.d)] for side in (lambda d: d.low > 0, lambda d: d.high < 0))
    unclear = [p for p in pairs if p not in better and p not in worse]
    matched = all(p.other.selector.startswith("random_") for p in pairs)
    random = "as many random steps" if matched else "random steps under the same cap"
    if len(pairs) == 1:
        (pair,) = pairs
        scores = f"{pair.arm.held_in.success:.2f} against {pair.other.held_in.success:.2f}"
        if better:
            answer = f"Training on the critical steps ({pair.name}) beats {random}: {scores}."
        elif worse:
            answer = (
                f"No: {random} beat the critical ones ({pair.name}), {pair.other.held_in.success:.2f} against "
                f"{pair.arm.held_in.success:.2f}."
            )
        else:
            answer = (
                f"Whether the critical steps ({pair.name}) beat {random} cannot be told from {_episodes(pair.arm)}: "
                f"{scores}."
            )
    else:
        said = [
            f"better than {random}: {listed([p.name for p in better])}" if better else "",
            f"worse: {listed([p.name for p in worse])}" if worse else "",
            f"cannot be told: {listed([p.name for p in unclear])}" if unclear else "",
        ]
        if better and not worse and not unclear:
            answer = f"Yes: {listed([p.name for p in better])} beat {random}."
        elif worse and not better and not unclear:
            answer = f"No: {random} beat {listed([p.name for p in worse])}."
        elif unclear and not better and not worse:
            answer = f"Whether critical steps beat {random} cannot be told from {_episodes(pairs[0].arm)}."
        else:
            answer = "It depends on the arm. " + "; ".join(s for s in said if s).capitalize() + "."
    numbers = [p.number for p in pairs]
    return Headline(
        "arms", "Do critical steps teach more than random ones?", answer, numbers, _arms_picture(run), _once(pairs)
    )


def _against_all(run: Run) -> Headline | None:
    other = everything(run.arms)
    if other is None or not critical(run.arms):
        return None
    pairs = _pairs(run, [(arm, other) for arm in critical(run.arms)])
    good = [p for p in pairs if is_as_good(p.d)]
    if good:
        best = min(good, key=lambda p: p.arm.trained_tokens)
        which = "are better than" if best.d.low > 0 else "teach as much as"
        answer = f"Critical steps ({best.name}) {which} all steps, {tokens_saved(best.arm, best.other)}."
    else:
        best = max(pairs, key=lambda p: p.d.low)
        cost = tokens_saved(best.arm, best.other)
        if best.d.high < 0:
            answer = f"No: all steps teach more than critical ones; {best.name} comes nearest, {cost}."
        else:
            answer = (
                f"Whether critical steps ({best.name}, {cost}) teach as much as all steps cannot be told from "
                f"{_episodes(best.arm)}."
            )
    numbers = [p.number for p in sorted(pairs, key=lambda p: p is not best)]
    return Headline("tokens", "Can they stand in for all steps?", answer, numbers, _tokens_picture(run), _once(pairs))


def _forgetting(run: Run) -> Headline | None:
    trained = [(name, arm) for name, arm in zip(arm_labels(run.arms), run.arms, strict=True) if arm.seeds]
    levels = known_levels(run.arms)
    if not levels:
        return None
    rows: list[tuple[str, Forgotten]] = []
    for name, arm in trained:
        if (row := forgotten(run, arm, level_for(len(trained)))) is not None:
            rows.append((name, row))
    if not rows:
        return None
    lost = [name for name, row in rows if row.change.high < 0]
    held = [name for name, row in rows if row.change.low >= -WITHIN]
    unclear = [name for name, _ in rows if name not in lost and name not in held]
    if not lost and not unclear:
        answer = f"No: every arm still does what the untuned model could ({listed(levels)})."
    elif not lost and not held:
        answer = f"It cannot be told whether any arm is worse on {listed(levels)}, which the untuned model could do."
    else:
        told = {"worse": lost, "as good": held, "cannot be told": unclear}
        said = "; ".join(f"{how}: {listed(names)}" for how, names in told.items() if names)
        answer = f"On {listed(levels)}, which the untuned model could do, against it: {said}."
    numbers = [f"{name}: {row.success:.2f} for {row.base:.2f}, {with_interval(row.change)}" for name, row in rows]
    return Headline(
        "forgetting",
        "Does tuning forget what the model could do?",
        answer,
        numbers,
        None,
        trained_once(arm for _, arm in trained),
    )


def _episodes(arm: Arm) -> str:
    seeds = max(1, len(arm.seeds))
    count = f"{arm.held_in.episodes // seeds:,} episodes"
    return count + (f" and {seeds} training seeds" if seeds > 1 else "")
