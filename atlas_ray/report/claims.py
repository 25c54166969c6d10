"""Which parts are the papers' and which are ours. Keep in step with the paper index of the docs."""

from __future__ import annotations

from ..recipe import Recipe
from .page import Html, el

_PAPERS = (
    ("2503.02197", "ATLaS: tune on critical steps, the loss on at most 30 % of them, everything else as context"),
    ("2402.12061", "LONDI: learn in which states the large model is called, at a cost a call or under a budget"),
)


def claims(recipe: Recipe | None) -> list[Html]:
    """Links to the papers and the list of what is ours."""
    papers = [
        el("li", el("a", f"arXiv {number}", href=f"https://arxiv.org/abs/{number}"), f" · {what}.")
        for number, what in _PAPERS
    ]
    ours = [
        "Anchor: the KL divergence to the base model on the unselected action tokens is in neither paper.",
        "Value selector: that a jump of the value estimated by roll-outs marks a critical step is ATLaS's comparison; "
        "the model that plays, its temperature, its horizon and how a jump is measured are ours" + _value(recipe) + ".",
        "Rounding: at most ceil(m·T) steps of a trajectory of T steps, and at least one.",
        "Normalisation: the loss is divided by the number of trained tokens of the whole optimiser step, the same in "
        "every arm.",
        "Training settings, encoder, network and exploration of the switch: not taken from the papers. The Q equations "
        "follow LONDI's idea as an earlier paper of the same line writes it out (LICRA); the budget is also enforced "
        "by a mask and by a guard in the environment.",
        "Intervals: Wilson's score interval, for several training seeds widened by their spread; differences by MOVER, "
        "as if independent, though all play the same episodes; no correction for the number of comparisons.",
        "Random mixing: the line is what drawing one of the two models for each whole episode would give.",
        "Models and environments are those of the recipe, so no number here can be set against one of the papers.",
    ]
    return [
        el("p", "The methods follow"),
        el("ul", papers),
        el("p", "Ours, and not to be blamed on the papers:"),
        el("ul", [el("li", line) for line in ours]),
    ]


def _value(recipe: Recipe | None) -> str:
    if recipe is None or recipe.select is None or "value" not in recipe.select.selectors:
        return ""
    s = recipe.select
    return (
        f" (here {s.model}, {s.rollouts} roll-outs a step of at most {s.horizon} steps, temperature {s.temperature:g})"
    )
