"""The report's part on the switches: their table, the second picture, and all comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.results import Policy
from .headlines import picture
from .page import NOTHING, Html, el, table
from .plots import svg
from .reading import signed, span
from .run import Run
from .switch_plots import londi_figure
from .switch_reading import above_line, ends, read_londi
from .tables import rate, told, told_heads


def reading_part(policies: Sequence[Policy]) -> list[Html]:
    """A list of sentences on all policies, then one for every learned switch."""
    told = read_londi(policies)
    parts = [el("h3", "The switch")] if told else []
    for name, sentences in told.items():
        if name != next(iter(told)):
            parts.append(el("h4", name))
        parts.append(el("ul", [el("li", s) for s in sentences], cls="reading"))
    return parts


def switch_pictures(run: Run) -> list[Html]:
    """Success against compute, the twin of the headline's picture."""
    if not any(p.is_switch for p in run.policies):
        return []
    figure = svg(londi_figure(run.policies, "compute"), "londi-compute", "Success against compute")
    caption = (
        f"The switch against compute ({run.policies[0].compute_unit}): of all models, with what a model must read of "
        "the steps that it did not take. Signs as in the picture against calls."
    )
    return [picture(figure, caption)]


def policies_part(run: Run) -> list[Html]:
    """Table of the policies."""
    if not run.policies:
        return []
    heading = el("h3", "LONDI: when to call the large model")
    return [heading, policies_table(run.policies), el("p", _note(run.policies), cls="note")]


def _note(policies: Sequence[Policy]) -> str:
    note = (
        "c: the cost of a DEEPTHINK call in training; n: a budget of calls per episode; calls: what training kept to "
        "on average; p: the rate of calls that a rule was set to. All policies play the same episodes. Return is "
        "without the costs of calls. Seconds are those that the models took. Seeds: how often a switch was trained."
    )
    if any(p.chosen_success is not None for p in policies):
        note += " Success when chosen: in other episodes, by which the policy was chosen among those of its training."
    if any(p.budget_fraction is not None for p in policies):
        note += " Of use: the budget is this share of the calls that the first cost's switch makes."
    if any(p.tokens_per_episode is not None for p in policies):
        note += (
            " Tokens and dollars per episode: what all models are paid for, each prompt counted whole, as budgets in "
            "tokens and money count; tokens=, usd=: such a budget."
        )
    if any(p.catch_up for p in policies):
        note += " Catching up: share of the compute that models take to read steps of others, or steps again."
    if (longest := max(p.run_length for p in policies)) > 1:
        note += (
            f" Calls of switches, random ones, and those of classifiers and verifiers come in runs of {longest} steps."
        )
    if any(p.calls_by_model for p in policies):
        note += " Calls and shares are of all models but QUICK; calls of each model go from QUICK to DEEPTHINK."
    if any(p.lost_episodes for p in policies):
        note += " Lost: a model gave no answer. Such an episode is left out for all policies."
    if any(p.replies for p in policies):
        note += (
            " Replies: of the models that write, in all episodes; fallen back: the last one went to the environment."
        )
    if any(p.learned and len(p.seeds) < 2 for p in policies):
        note += " Switches that were trained once have intervals that know nothing of the spread between trainings."
    return note


def _of_compute(policy: Policy) -> str:
    """Share of the compute that models take to catch up."""
    if policy.catch_up is None or not policy.compute:
        return NOTHING
    return f"{policy.catch_up / policy.compute:.0%}"


def _spend(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def policies_table(policies: Sequence[Policy]) -> Html:
    """The policies with their success against random mixing, and what they took."""
    pair = ends(policies)
    several = any(p.calls_by_model for p in policies)
    chosen = any(p.chosen_success is not None for p in policies)
    heads = ["policy", "success", *(["success when chosen"] if chosen else [])]
    heads += ["above random mixing", "return", "calls per episode"]
    heads += [*(["calls of each model"] if several else []), "share of steps", f"compute ({policies[0].compute_unit})"]
    catches_up = any(p.catch_up for p in policies)
    spends = any(p.tokens_per_episode is not None for p in policies)
    heads += [
        *(["catching up"] if catches_up else []),
        *(["tokens per episode", "dollars per episode"] if spends else []),
        "seconds per episode",
        "budget exceeded",
        "seeds",
        "episodes",
        *told_heads(policies),
    ]
    rows: list[list[str | Html]] = []
    for policy in policies:
        line: str | Html = NOTHING
        if pair is not None and policy not in pair:
            mean, low, high = above_line(policy, *pair)
            line = Html(f"{signed(mean)} " + el("span", span(low, high), cls="ci"))
        each = " / ".join(f"{n:.2f}" for n in policy.calls_by_model or ()) or NOTHING
        rows.append(
            [
                policy.name
                if policy.budget_fraction is None
                else f"{policy.name}, {policy.budget_fraction:.0%} of use",
                rate(policy),
                *([NOTHING if policy.chosen_success is None else f"{policy.chosen_success:.2f}"] if chosen else []),
                line,
                f"{policy.mean_return:.3f}",
                f"{policy.deepthink_calls_per_episode:.2f}",
                *([each] if several else []),
                f"{policy.deepthink_share:.1%}",
                f"{policy.compute:.2e}" if policy.compute >= 1e4 else f"{policy.compute:.3g}",
                *([_of_compute(policy)] if catches_up else []),
                *([_spend(policy.tokens_per_episode), _spend(policy.usd_per_episode)] if spends else []),
                NOTHING if policy.seconds_per_episode is None else f"{policy.seconds_per_episode:.3g}",
                NOTHING if policy.budget is None else f"{policy.budget_violations:,}",
                f"{len(policy.seeds)}" if policy.seeds else NOTHING,
                f"{policy.episodes:,}",
                *told(policy, policies),
            ]
        )
    return table(heads, rows)
