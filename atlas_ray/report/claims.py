"""Which parts are the papers' and which are ours. Keep in step with the paper index of the docs."""

from __future__ import annotations

from ..recipe.loading import Recipe
from ..recipe.select import matched, members
from .page import Html, el
from .swept_arms import sweeps_arms

_PAPERS = (
    ("2503.02197", "ATLaS: tune on critical steps, the loss on at most 30 % of them, everything else as context"),
    ("2402.12061", "LONDI: learn in which states the large model is called, at a cost per call or under a budget"),
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
        *_selectors(recipe),
        *_of_experts_and_sweeps(recipe),
        "Rounding: at most ceil(m·T) steps of a trajectory of T steps, and at least one.",
        "Normalisation: the loss is divided by the number of trained tokens of the whole optimiser step, the same in "
        "every arm.",
        *_switches(recipe),
        *_own_rounds(recipe),
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


def _of_experts_and_sweeps(recipe: Recipe | None) -> list[str]:
    lines = []
    if recipe is not None and recipe.collect and recipe.collect.expert.words:
        lines.append("Experts with a bias: that cloning copies it is ATLaS's claim; habit, detours and noise are ours.")
    if recipe is not None and recipe.sweep and sweeps_arms(list(recipe.sweep.space)):
        lines.append(
            "Arms of a sweep: that trials which differ in their arm alone are read as one run, which arms are set "
            "against which, and the correction for all that a question shows are ours."
        )
    return lines


def _switches(recipe: Recipe | None) -> list[str]:
    """What is ours of the switches that the run trained, and of what they are compared with."""
    if recipe is None or recipe.switch is None:
        return []
    s = recipe.switch
    lines = {
        "More than two models: LONDI has two; a number for each and what its calls cost are ours.": len(s.models) > 2,
        "Measured costs: charging what each call really took is ours.": "measured" in s.costs,
        "Averages: a price of calls that rises and falls until they keep to an average is textbook; LONDI has none.": (
            bool(s.averages)
        ),
        "Signals: that the switch also sees QUICK's answer, what the episode's past says, or a classifier's doubt, is "
        "ours.": bool(s.signals),
        "Baselines: LONDI's own are not known to us. A rule is set to the rate of calls that a switch has, to two "
        "digits; a threshold is set in episodes that QUICK plays alone; the oracle asks the environment's expert.": (
            bool(s.baselines)
        ),
        "Fitted and hand-written rules: a classifier of steps that could be downgraded, a verifier of QUICK's answers "
        "(as in cascades), one value and one switch after the first steps (SWE-Router's idea), triggers (SwiftSage's "
        "idea) are made anew here, and read what our switch reads; what is fitted is fitted to training episodes.": (
            bool({"classifier", "verifier", "escalate", "triggers"} & set(s.baselines))
        ),
        "Rounds: to tune QUICK on a switch's calls and train the switch again joins both methods, which neither paper "
        "does; the arms, who acts in a round and which is kept are ours.": recipe.rounds is not None,
    }
    return [line for line, used in lines.items() if used]


def _own_rounds(recipe: Recipe | None) -> list[str]:
    """What is ours of rounds of a model's own runs."""
    if recipe is None or recipe.rounds is None or recipe.switch is not None:
        return []
    return [
        "Rounds of a model's own runs: that a model collects again with what it has become is expert iteration's and "
        "STaR's; the selectors, pairs, controls and which round is kept are ours."
    ]


def _value(recipe: Recipe | None) -> str:
    if recipe is None or recipe.select is None or "value" not in recipe.select.selectors:
        return ""
    s = recipe.select
    return (
        f" (here {s.model}, {s.rollouts} roll-outs per step of at most {s.horizon} steps, "
        f"temperature {s.temperature:g})"
    )


def _selectors(recipe: Recipe | None) -> list[str]:
    """What is ours of the selectors that the run used, and of the tests of them."""
    if recipe is None or recipe.select is None:
        return []
    s = recipe.select
    lines = {
        "oracle": "Oracle selector: that a language model reads the whole trajectory and marks steps of four "
        "categories is ATLaS's; the wording it is given, the JSON, the windows for long trajectories and what is "
        f"refused are ours (here {s.oracle.model}).",
        "perplexity": "Perplexity selector: the steps that surprise the model that is to be tuned most are a control "
        "of ATLaS; which tokens count is ours.",
        "mistakes": "Mistakes selector: that a model calls each step good, unnecessary, a mistake or a recovery, and "
        "that the loss leaves out mistakes, is SRFT's (arXiv 2605.10674); that unnecessary steps are left out too, the "
        f"wording and what is refused are ours (here {s.oracle.model}).",
        "entropy": "Entropy selector: to mark the steps at which the model that is to be tuned is least sure of its "
        "action is ours.",
        "verified": "Verified selector: that an alternative at a step of a failed run is played to the end and counts "
        "where failure turns into success is CSO's (arXiv 2602.03412, by its abstract); who proposes, the control by "
        "the agent's own action and the exact test are ours "
        f"(here {s.verified.rollouts} roll-outs behind either action; alternatives by {s.verified.alternative.model}).",
        "deviation": "Deviation selector: that a step is critical where the base's own move costs most is ours (here "
        f"{s.model}; the environment's expert plays on, else {s.play_on or s.model}).",
        "advised": "Advised selector: to mark the steps at which the environment's expert would do the same is ours, "
        "in the place of labels by a model.",
        "successes": "Successes selector: all steps of the successful episodes alone, as rejection sampling takes "
        "them; ours as a control.",
        "uniform": "Uniform selector: evenly spaced steps as a control are ours.",
        "last": "Last selector: the last steps as a control are ours.",
        "calls": "Calls selector: to take the steps at which a switch called another model than its first for critical "
        "is ours, and in neither paper.",
    }
    used = [line for name, line in lines.items() if name in s.selectors]
    if own := [name for name in s.selectors if name in s.files]:
        used.append(f"Annotations of the user's own ({', '.join(own)}): neither the papers' nor ours.")
    if joined := [name for name in s.selectors if members(name) and not matched(name)]:
        used.append(f"Ensembles ({', '.join(joined)}): how selectors are joined is ours; the paper leaves it open.")
    if drawn := [name for name in s.selectors if matched(name)]:
        used.append(f"Size-matched controls ({', '.join(drawn)}): as many steps as another selector marked are ours.")
    if len([name for name in s.selectors if name != "all"]) > 1:
        used.append("Agreement of selectors: the measures and their interval, trajectories resampled, are ours.")
    if s.start_after:
        used.append(
            "Starts behind marked steps: going on behind critical and behind random steps is ATLaS's Table 6 as our "
            "notes have it; which steps are random, that a last step is left out, and the intervals are ours."
        )
    return used
