"""The pictures of rounds (ours): what acts in each, what each lesson taught, what own runs did for the model."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from ..data.own_rounds import OwnRounds
from ..data.results import ALWAYS_QUICK
from ..data.rounds import Round, Rounds, System
from .labels import Label, write_labels
from .page import LIGHT
from .plots import SETTINGS, blank, plain


def acting(each: Round) -> System:
    """What acts in a round."""
    return each.quick if each.policy == ALWAYS_QUICK else each.switch


def rounds_figure(made: Rounds) -> Figure:
    """Success against calls: what acts in each round connected, QUICK alone, and DEEPTHINK alone."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.2)
        axes = plain(figure.add_subplot())
        acts = [acting(each) for each in made.rounds]
        axes.plot([s.calls for s in acts], [s.success for s in acts], color=LIGHT["orange"], linewidth=1.0)
        kept = [each.kept for each in made.rounds]
        drawn = [("DEEPTHINK alone", "D", "muted", [made.deepthink], [True])]
        drawn += [("QUICK alone", "o", "blue", [each.quick for each in made.rounds], [True] * len(kept))]
        drawn += [("what acts", "s", "orange", acts, kept)]
        for label, marker, colour, systems, filled in drawn:
            look = {"linestyle": "none", "marker": marker, "color": LIGHT[colour], "markersize": 6.5, "zorder": 3}
            for number, s in enumerate(systems):
                axes.plot([s.calls] * 2, s.ci95, color=LIGHT[colour], linewidth=1.3, alpha=0.4)
                fill = {} if filled[number] else {"markerfacecolor": LIGHT["paper"]}
                axes.plot([s.calls], [s.success], label=label if not number else None, **look, **fill)
        axes.set_xlabel("calls per episode", color=LIGHT["muted"])
        axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.margins(x=0.12, y=0.1)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
        named = [(f"round {number}", s, True) for number, s in enumerate(acts)]
        named += [("", s, False) for *_, systems, _ in drawn[:-1] for s in systems]
        write_labels(figure, axes, [Label(name, s.calls, s.success, s.ci95, shown) for name, s, shown in named])
    return figure


def arms_figure(made: Rounds, each: Round) -> Figure:
    """Success of every arm's QUICK alone, from the top down, and of the untuned one."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(0.9 + 0.5 * len(each.arms))
        axes = plain(figure.add_subplot())
        axes.axvline(made.rounds[0].quick.success, color=LIGHT["muted"], linewidth=1.0, linestyle=(0, (4, 3)), zorder=1)
        for row, arm in enumerate(each.arms):
            colour = LIGHT["blue" if row else "orange"]
            axes.plot(arm.ci95, [row] * 2, color=colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot([arm.success], [row], "o", color=colour, markersize=6)
        names = [f"{a.arm}\n{a.calls_spent:,.0f} calls, {a.trained_tokens:,.0f} tokens" for a in each.arms]
        axes.set_yticks(range(len(names)), names, parse_math=False, color=LIGHT["ink"], fontsize=9)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(-0.02, 1.02)
        axes.grid(axis="x", color=LIGHT["rule"], linewidth=0.7)
        axes.set_xlabel("success without a call, with 95 % interval", color=LIGHT["muted"])
    return figure


def lessons_figure(made: Rounds) -> Figure:
    """Success of every arm's QUICK alone against the calls spent on its lessons, an arm's rounds connected."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.2)
        axes = plain(figure.add_subplot())
        untuned = made.rounds[0].quick
        axes.plot([0], [untuned.success], "D", color=LIGHT["muted"], markersize=6.5, label="untuned")
        axes.plot([0, 0], untuned.ci95, color=LIGHT["muted"], linewidth=1.3, alpha=0.4)
        names = list(dict.fromkeys(arm.arm for each in made.rounds for arm in each.arms))
        for place, name in enumerate(names):
            arms = [arm for each in made.rounds for arm in each.arms if arm.arm == name]
            colour, style = LIGHT["blue" if place else "orange"], ("-", "--", ":", "-.", (0, (1, 3)))[place % 5]
            look = {"color": colour, "linestyle": style, "markerfacecolor": LIGHT["paper"] if place else colour}
            shift = 1 + 0.015 * (place - len(names) / 2)  # those of the same calls beside each other
            xs = [arm.calls_spent * shift for arm in arms]
            axes.plot(xs, [arm.success for arm in arms], marker="os^vP"[place % 5], label=name, **look)
            for x, arm in zip(xs, arms, strict=True):
                axes.plot([x, x], arm.ci95, color=colour, linewidth=1.3, alpha=0.4)
        axes.set_xlabel("calls spent on the lessons", color=LIGHT["muted"])
        axes.set_ylabel("success without a call, with 95 % interval", color=LIGHT["muted"])
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.margins(x=0.06, y=0.1)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
    return figure


def own_rounds_figure(made: OwnRounds) -> Figure:
    """Success of the model of every round, held-in and held-out, connected; that of other arms beside it."""
    with matplotlib.rc_context(SETTINGS):
        figure = blank(4.2)
        axes = plain(figure.add_subplot())
        for split, colour, marker, shift in (("held_in", "blue", "o", -0.04), ("held_out", "orange", "s", 0.04)):
            cells = [(each, getattr(each, split)) for each in made.rounds]
            if cells[0][1] is None:
                continue
            label, look = split.replace("_", "-"), {"color": LIGHT[colour], "marker": marker, "markersize": 6.5}
            axes.plot([e.round + shift for e, _ in cells], [c.success for _, c in cells], color=LIGHT[colour])
            for each, cell in cells:
                axes.plot([each.round + shift] * 2, cell.ci95, color=LIGHT[colour], linewidth=1.3, alpha=0.4)
                fill = {} if each.kept else {"markerfacecolor": LIGHT["paper"]}
                axes.plot([each.round + shift], [cell.success], label=None if each.round else label, **look, **fill)
                others = [getattr(arm, split).success for arm in each.arms if arm.arm != made.arm]
                axes.plot([each.round + 2 * shift] * len(others), others, "x", color=LIGHT[colour], markersize=4.5)
        axes.set_xticks([each.round for each in made.rounds])
        axes.set_xlabel("round", color=LIGHT["muted"])
        axes.set_ylabel("success, with 95 % interval", color=LIGHT["muted"])
        axes.set_ylim(-0.02, 1.02)
        axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.7)
        axes.margins(x=0.12)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, labelcolor=LIGHT["ink"], fontsize=9)
    return figure
