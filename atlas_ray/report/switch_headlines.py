"""The headline of the switches: what they save, and whether it matters where they call."""

from __future__ import annotations

from ..data.paired import Difference, level_for
from ..data.results import Policy
from .headlines import Headline, is_as_good, percent, picture, trained_once, with_interval
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
    switches = [p for p in run.policies if p.is_switch]
    if not switches:
        return []
    shown = picture(svg(londi_figure(run.policies), "londi", "Success against DEEPTHINK calls"), _SHOWN)
    return [_headline(run, switches, shown)]


def _headline(run: Run, switches: list[Policy], shown: Html) -> Headline:
    question = "When is the large model worth a call?"
    pair = ends(run.policies)
    if pair is None:
        answer = "What the switch saves cannot be told: the large model was not scored alone, or never called."
        return Headline("switch", question, answer, (), shown)
    level = level_for(len(switches))
    to_deepthink = {
        p.name: difference(run.outcomes.of_policies(p, pair[1], level), p, pair[1], level) for p in switches
    }
    chosen = _chosen(switches, to_deepthink)
    what, number, to_random = _random(run, chosen, pair, level)
    saved = 1 - chosen.deepthink_calls_per_episode / pair[1].deepthink_calls_per_episode
    answer = _answer(
        chosen,
        pair[1],
        "The switch" if len(switches) == 1 else f"The switch {chosen.name}",
        f"{percent(abs(saved))} {'fewer' if saved > 0 else 'more'} calls" if round(saved, 2) else "as many calls",
        to_deepthink[chosen.name],
        what,
        to_random,
    )
    lines = [
        f"{p.name} less {pair[1].name}: {with_interval(to_deepthink[p.name])}, "
        f"{p.deepthink_calls_per_episode:.2f} calls per episode against {pair[1].deepthink_calls_per_episode:.2f}"
        for p in sorted(switches, key=lambda p: p.name != chosen.name)
    ]
    return Headline("switch", question, answer, [lines[0], number, *lines[1:]], shown, trained_once([chosen]))


def _chosen(switches: list[Policy], to_deepthink: dict[str, Difference]) -> Policy:
    """Of those that reach the large model the one with fewest calls, else the nearest of those that may reach it."""
    if good := [p for p in switches if is_as_good(to_deepthink[p.name])]:
        return min(good, key=lambda p: p.deepthink_calls_per_episode)
    maybe = [p for p in switches if to_deepthink[p.name].high >= 0]
    return max(maybe or switches, key=lambda p: to_deepthink[p.name].low)


def _answer(
    chosen: Policy, deepthink: Policy, who: str, calls: str, to_deepthink: Difference, what: str, to_random: Difference
) -> str:
    """What the two differences say; ``what`` is the baseline at its rate, ``calls`` what it saves."""
    unclear = f"cannot be told from {_episodes(chosen)}"
    reaches = f"Whether {who[0].lower()}{who[1:]}, with {calls}, reaches the large model's success"
    if to_random.low > 0:
        second = f"it beats {what}, so where it calls matters"
    elif to_random.high < 0:
        second = f"it is worse than {what}, so it calls in the wrong places"
    else:
        second = f"whether it beats {what} {unclear}"
    if to_deepthink.low > 0:
        first = f"{who} beats the large model with {calls}"
    elif is_as_good(to_deepthink):
        first = f"{who} reaches the large model's success with {calls}"
    elif to_deepthink.high < 0:
        first = (
            f"{who} falls short of the large model, with {chosen.success:.2f} for {deepthink.success:.2f} and {calls}"
        )
        first = (
            first
            if who == "The switch"
            else f"No switch reaches the large model's success: {first[0].lower()}{first[1:]}"
        )
    elif to_random.low <= 0 <= to_random.high:
        return f"{reaches}, and whether it beats {what}, {unclear}."
    else:
        first = f"{reaches} {unclear}"
    return f"{first}; {second}."


def _random(run: Run, chosen: Policy, pair: tuple[Policy, Policy], level: float) -> tuple[str, str, Difference]:
    """What calls without looking at its rate, in words and as a line of numbers, and how much better the switch is."""
    random = next((p for p in twins(chosen, run.policies) if family(p) == "random"), None)
    if random is not None:
        d = difference(run.outcomes.of_policies(chosen, random, level), chosen, random, level)
        return "random calls at its rate", f"{chosen.name} less {random.name}: {with_interval(d)}", d
    share = min(1.0, chosen.deepthink_calls_per_episode / pair[1].deepthink_calls_per_episode)
    d = unpaired([(1, chosen), (share - 1, pair[0]), (-share, pair[1])], level)
    number = f"{chosen.name} less random mixing at its calls: {with_interval(d)}"
    return "drawing one model for each episode", number, d


def _episodes(policy: Policy) -> str:
    seeds = max(1, len(policy.seeds))
    return f"{policy.episodes // seeds:,} episodes" + (f" and {seeds} training seeds" if seeds > 1 else "")
