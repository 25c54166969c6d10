"""The headline of the switches: what they save, and whether it matters where they call."""

from __future__ import annotations

from collections.abc import Callable

from ..data.paired import Difference, level_for
from ..data.results import Policy
from .headlines import Headline, is_as_good, percent, picture, with_interval
from .outcomes import difference, unpaired
from .page import Html
from .plots import svg
from .run import Run
from .switch_plots import londi_figure
from .switch_reading import ends, family, twins

_SHOWN = (
    "Success against DEEPTHINK calls per episode, with 95 % intervals: learned switches in orange, each kind connected "
    "in the order of its limits; baselines in blue, hollow where they are under a budget. Dashed: random mixing, which "
    "draws one of the two models for each whole episode; a switch that learned something lies above it. Grey band: the "
    "frontier, policies than which none had more success with as few calls."
)


def switch_headlines(run: Run) -> list[Headline]:
    """Nothing where no switch was scored."""
    learned = [p for p in run.policies if p.learned]
    if not learned:
        return []
    shown = picture(svg(londi_figure(run.policies), "londi", "Success against DEEPTHINK calls"), _SHOWN)
    return [_headline(run, learned, shown)]


def _headline(run: Run, learned: list[Policy], shown: Html) -> Headline:
    question = "When is the large model worth a call?"
    pair = ends(run.policies)
    if pair is None:
        answer = "What the switch saves cannot be told: the large model was not scored alone, or never called."
        return Headline(question, answer, (), shown, "switch")
    level = level_for(len(learned))

    def against(other: Policy) -> Callable[[Policy], Difference]:
        return lambda p: difference(run.outcomes.of_policies(p, other, level), p, other, level)

    to_deepthink = {p.name: against(pair[1])(p) for p in learned}
    good = [p for p in learned if is_as_good(to_deepthink[p.name])]
    if good:
        chosen = min(good, key=lambda p: p.deepthink_calls_per_episode)
    else:
        chosen = max(learned, key=lambda p: to_deepthink[p.name].low)
    first = _against_deepthink(chosen, pair, to_deepthink[chosen.name], len(learned))
    second, numbers = _against_random(run, chosen, pair, level)
    lines = [
        f"{p.name} less {pair[1].name}: {with_interval(to_deepthink[p.name])}, "
        f"{p.deepthink_calls_per_episode:.2f} calls per episode against {pair[1].deepthink_calls_per_episode:.2f}"
        for p in sorted(learned, key=lambda p: p.name != chosen.name)
    ]
    return Headline(question, f"{first}; {second}.", [lines[0], *numbers, *lines[1:]], shown, "switch")


def _against_deepthink(chosen: Policy, pair: tuple[Policy, Policy], d: Difference, switches: int) -> str:
    deepthink = pair[1]
    saved = 1 - chosen.deepthink_calls_per_episode / deepthink.deepthink_calls_per_episode
    calls = f"{percent(abs(saved))} {'fewer' if saved >= 0 else 'more'} calls"
    who = "The switch" if switches == 1 else f"The switch {chosen.name}"
    if d.low > 0:
        said = f"{who} beats the large model with {calls}"
    elif is_as_good(d):
        said = f"{who} reaches the large model's success with {calls}"
    elif d.high < 0:
        which = "" if switches == 1 else f"; of {switches} switches {chosen.name} comes nearest,"
        said = f"No switch reaches the large model's success{which} with {chosen.success:.2f} for"
        said = said if switches > 1 else f"The switch falls short of the large model, with {chosen.success:.2f} for"
        said += f" {deepthink.success:.2f} and {calls}"
    else:
        said = (
            f"Whether {who[0].lower()}{who[1:]}, with {calls}, reaches the large model's success cannot be told from "
            f"{_episodes(chosen)}"
        )
    return said


def _against_random(run: Run, chosen: Policy, pair: tuple[Policy, Policy], level: float) -> tuple[str, list[str]]:
    """Whether it matters where the chosen switch calls."""
    random = next((p for p in twins(chosen, run.policies) if family(p) == "random"), None)
    if random is not None:
        d = difference(run.outcomes.of_policies(chosen, random, level), chosen, random, level)
        what = "random calls at its rate"
        number = f"{chosen.name} less {random.name}: {with_interval(d)}"
    else:
        share = min(1.0, chosen.deepthink_calls_per_episode / pair[1].deepthink_calls_per_episode)
        d = unpaired([(1, chosen), (share - 1, pair[0]), (-share, pair[1])], level)
        what = "drawing one model for each episode"
        number = f"{chosen.name} less random mixing at its calls: {with_interval(d)}"
    if d.low > 0:
        said = f"it beats {what}, so where it calls matters"
    elif d.high < 0:
        said = f"{what} does better, so it calls in the wrong places"
    else:
        said = f"whether it beats {what} cannot be told from {_episodes(chosen)}"
    return said, [number]


def _episodes(policy: Policy) -> str:
    seeds = max(1, len(policy.seeds))
    return f"{policy.episodes // seeds:,} episodes" + (f" and {seeds} training seeds" if seeds > 1 else "")
