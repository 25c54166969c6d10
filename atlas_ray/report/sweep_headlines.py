"""The headlines of a sweep over arms: each answer with the picture that carries it."""

from __future__ import annotations

from dataclasses import replace

from .arm_pairs import FORGETTING, QUESTIONS, critical
from .headlines import Headline, picture
from .page import Html
from .plots import atlas_figure, svg, tokens_figure
from .run import Run
from .sweep import read_sweep
from .sweep_answers import HELD_IN, LEADERS, Swept, sweep_answers, swept_of
from .sweep_curves import MOST_PANELS, curve_figure, differences_figure, panels_of
from .sweep_plots import label, ranked_figure

_ORANGE = (
    "Orange: critical steps; blue, dashed: as many random steps, with the marker of those that they belong to; dotted: "
    "steps that are not critical; black: all steps (dashed: with the anchor)."
)


def sweep_headlines(run: Run) -> list[Headline]:
    """Nothing where no sweep over arms was scored."""
    swept = swept_of(read_sweep(run.layout), run.root)
    if swept is None:
        return []
    return [
        replace(h, name=f"sweep-{h.name}", picture=_scores(swept) if h.name == LEADERS else _apart(h.name, swept))
        for h in sweep_answers(swept)
    ]


def sweep_pictures(run: Run) -> list[Html]:
    """Held-out success over the axis, and success against trained tokens."""
    swept = swept_of(read_sweep(run.layout), run.root)
    if swept is None:
        return []
    axis, shown = swept.axis, []
    panels = panels_of(swept.groups, axis) if axis else []
    if axis and panels and any(arm.held_out is not None for group in swept.groups for arm in group.arms):
        image = svg(curve_figure(panels, axis, "held_out"), "curve-out", f"Held-out success over {axis}")
        caption = f"Success on levels that were never trained on, over {axis}, with 95 % intervals. {_ORANGE}"
        shown.append(picture(image, caption))
    for number, group in enumerate(swept.groups[:MOST_PANELS]):
        image = svg(tokens_figure(group.arms), f"tokens-{number}", "Held-in success against trained tokens")
        where = label(group.values, group.values)
        caption = f"Held-in success against the tokens that carried loss{f', {where}' if where else ''}."
        shown.append(picture(image, f"{caption} Orange: critical steps; blue: controls; hollow: with an anchor."))
    return shown


def _scores(swept: Swept) -> Html:
    """Success of the arms: over the axis where there is one."""
    groups, axis = swept.groups, swept.axis
    if axis and (panels := panels_of(groups, axis)):
        image = svg(curve_figure(panels, axis, "held_in"), "curve", f"Held-in success of the arms over {axis}")
        return picture(image, f"Held-in success over {axis}, with 95 % intervals. {_ORANGE} The rest in the table.")
    alone = len(groups) == 1
    figure = atlas_figure(groups[0].arms) if alone else ranked_figure(swept.made)
    caption = "Success of every arm, with 95 % intervals." if alone else "Trials, with 95 % intervals."
    return picture(svg(figure, "scores", "Success of the arms"), caption)


def _apart(question: str, swept: Swept) -> Html:
    """How far apart the arms of a question are."""
    own = swept.of(question, *HELD_IN)
    arms = [arm for group in swept.groups for arm in group.arms]
    few = {arm.name for arm in (*critical(arms), *(a for a in arms if a.selector == "all"))}
    image = svg(differences_figure(own, swept.axis, few), f"apart-{question}", "Differences of success")
    where = "the levels that the untuned model could do" if question == FORGETTING else "held-in levels"
    second = next((q.other for q in QUESTIONS if q.name == question), "the untuned model")
    caption = (
        f"Success less that of {second}, on {where}, with intervals that hold together: "
        f"{own[0].level:.2%} each, for {len(own)} comparison{'s' * (len(own) != 1)}."
    )
    return picture(image, caption)
