"""Writes the tables and numbers of the pages from the outcomes that are kept here, so that none is typed.

python docs/evidence/tables.py           # write them
python docs/evidence/tables.py --check   # exit code 1 where a page has others

A page has ``<!-- evidence: NAME TABLE -->`` before and ``<!-- end -->`` behind each; NAME is a directory here. In a
sentence both stand on one line. A NAME that nobody has kept yet is said to be so.

    about                        command, commit, date and machine
    answers [QUESTION ...]       what can be told, in plain words
    arms                         every arm with its cost and scores, for each set of the other swept values
    curve [SPLIT]                success over the swept number, a row per arm; SPLIT is held-in, held-out or forgetting
    compare QUESTION [...]       differences with intervals that hold together
    rounds, round-arms           rounds of switching and tuning, and what QUICK learned from
    policies                     switches and their baselines
    score ARM VALUE [SPLIT]      one success rate, at a value of the swept number
    less QUESTION ARM VALUE [SPLIT]   one difference

QUESTION is one of ``leaders``, ``random``, ``random-cap``, ``non-critical``, ``all``, ``distilled``, ``pairs``,
``successes``, ``anchor``, ``forgetting``; of rounds ``answers`` knows ``rounds`` and ``lessons``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas_ray.data.paired import Difference
from atlas_ray.data.results import Results, load_results
from atlas_ray.data.rounds import Rounds, load_rounds
from atlas_ray.errors import InputError
from atlas_ray.report.arm_pairs import FORGETTING, QUESTIONS
from atlas_ray.report.headlines import Headline, with_interval
from atlas_ray.report.reading import arm_labels
from atlas_ray.report.round_plots import acting
from atlas_ray.report.rounds import rounds_headlines
from atlas_ray.report.run import Run
from atlas_ray.report.sweep_answers import Swept, sweep_answers, swept_of
from atlas_ray.report.sweep_plots import label
from atlas_ray.report.swept_arms import Comparison, Group
from atlas_ray.rundir.files import read_json, write_text
from atlas_ray.rundir.layout import RunLayout

HERE = Path(__file__).parent
PAGES = (HERE.parent.parent / "README.md", *sorted(HERE.parent.glob("*.md")))
ABOUT, COMPARISONS = "about.json", "comparisons.json"
NOT_YET = "*Not measured yet.*"
NOTHING = "–"
ASKED = (*(question.name for question in QUESTIONS), FORGETTING)
SPLITS = {"held-in": "held_in", "held-out": "held_out", "forgetting": "known"}
# (in backticks a page only speaks of them)
_BLOCK = re.compile(r"(?<!`)(<!-- evidence: ([\w-]+) ([^>]+?) -->)(\n?)(.*?)(<!-- end -->)", re.DOTALL)
_BEGINS = re.compile(r"(?<!`)<!-- evidence:")


@dataclass(frozen=True)
class Evidence:
    """What is kept of a run."""

    directory: Path

    @property
    def layout(self) -> RunLayout:
        """Its files have the names that they have in a run."""
        return RunLayout(self.directory)

    @cached_property
    def about(self) -> dict[str, Any]:
        """Where it is from."""
        return read_json(self.directory / ABOUT)

    @cached_property
    def results(self) -> Results:
        """The scores of a run."""
        return load_results(self._there(self.layout.results))

    @cached_property
    def rounds(self) -> Rounds:
        """Its rounds."""
        return load_rounds(self._there(self.layout.rounds))

    @cached_property
    def swept(self) -> Swept:
        """Its arms and what was compared: of a sweep, or of the one run as a sweep without an axis."""
        if self.layout.sweep_json.is_file():
            made = read_json(self.layout.sweep_json)
            found = swept_of(made, self.directory)
            if found is None:
                raise InputError("holds no arm that was scored", self.layout.sweep_json)
            return found
        arms = self.results.atlas.arms if self.results.atlas else ()
        rows = read_json(self._there(self.directory / COMPARISONS))
        compared = [Comparison.of_row(row) for row in rows]
        return Swept({"trials": []}, [Group({}, (), 0, 0, arms, self.directory)], compared, None)

    def _there(self, path: Path) -> Path:
        if not path.is_file():
            raise InputError(f"has no {path.name}", self.directory)
        return path


Table = Callable[[Evidence, Sequence[str]], str]


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table; columns behind the first ``words`` are right-aligned."""
    lines = [list(heads), ["---" if i < words else "---:" for i in range(len(heads))], *map(list, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rate(score: Any) -> str:
    """``0.26 [0.19, 0.35]``."""
    return NOTHING if score is None else f"{score.success:.2f} [{score.ci95[0]:.2f}, {score.ci95[1]:.2f}]"


def bold(d: Difference | None) -> str:
    """``**+0.20 [+0.10, +0.30]**``, in bold where the interval leaves zero out."""
    if d is None:
        return NOTHING
    return f"**{with_interval(d)}**" if d.above or d.below else with_interval(d)


def less(c: Comparison | None) -> str:
    """A comparison, likewise."""
    return bold(c.difference if c else None)


# -- tables


def about(kept: Evidence, words: Sequence[str]) -> str:
    """One sentence."""
    a = kept.about
    told = f"`{a['command']}` at {a['commit'][:9]}, {a['date']}, {a['machine']}"
    if (trials := a.get("trials")) is None:
        return f"{told}."
    missing = [f"{trials[what]} {what}" for what in ("unfinished", "failed") if trials[what]]
    return f"{told}: {trials['done']} of {sum(trials.values())} trials{''.join(f', {what}' for what in missing)}."


def answers(kept: Evidence, words: Sequence[str]) -> str:
    """An item per question."""
    return "\n".join(f"- *{h.question}* {h.answer}" for h in _headlines(kept, words))


def _headlines(kept: Evidence, words: Sequence[str]) -> Iterator[Headline]:
    if kept.layout.rounds.is_file():
        found = {h.name: h for h in rounds_headlines(Run(kept.directory, None, None))}
    else:
        found = {h.name: h for h in sweep_answers(kept.swept)}
    for name in words or found:
        if name not in found:
            raise InputError(f"answers no question {name!r}; it has {', '.join(found)}", kept.directory)
        yield found[name]


def arms(kept: Evidence, words: Sequence[str]) -> str:
    """A table per group."""
    parts = []
    lost = {(str(c.values), c.first): c for c in kept.swept.of(FORGETTING, "known")}
    for group in kept.swept.groups:
        heads = [
            "trained on",
            "share of steps",
            "trained tokens",
            "held-in",
            "held-out",
            *(["forgetting"] * bool(lost)),
        ]
        rows = [
            [
                name,
                f"{arm.steps_share:.0%}",
                f"{arm.trained_tokens:,}",
                rate(arm.held_in),
                rate(arm.held_out),
                *([less(lost.get((str(group.values), arm.name)))] * bool(lost)),
            ]
            for name, arm in zip(arm_labels(group.arms), group.arms, strict=True)
        ]
        parts.append(markdown(heads, rows))
        if group.values:
            parts.insert(-1, f"{label(group.values, group.values)}:")
    return "\n\n".join(parts)


def curve(kept: Evidence, words: Sequence[str]) -> str:
    """A row per arm, a column per group."""
    split = _split(words)
    groups = kept.swept.groups
    names = dict.fromkeys(arm.name for group in groups for arm in group.arms)
    heads = ["trained on", *(label(group.values, group.values) or "success" for group in groups)]
    rows = [
        ["untuned" if name == "none" else name, *(_cell(kept, group, name, split) for group in groups)]
        for name in names
        if not (name == "none" and split == "known")
    ]
    return markdown(heads, rows)


def _split(words: Sequence[str]) -> str:
    name = words[0] if words else "held-in"
    if name not in SPLITS:
        raise InputError(f"{name!r} is none of {', '.join(SPLITS)}")
    return SPLITS[name]


def _cell(kept: Evidence, group: Group, name: str, split: str) -> str:
    arm = next((arm for arm in group.arms if arm.name == name), None)
    if arm is None:
        return NOTHING
    if split == "known":
        own = (c for c in kept.swept.of(FORGETTING, "known") if (c.values, c.first) == (group.values, name))
        return less(next(own, None))
    return rate(arm.held_in if split == "held_in" else arm.held_out)


def compare(kept: Evidence, words: Sequence[str]) -> str:
    """A row per pair."""
    parts = []
    for name in words or ASKED:
        found: dict[tuple[str, str, str], dict[str, Comparison]] = {}
        for c in kept.swept.of(name, *SPLITS.values()):
            found.setdefault((label(c.values, c.values), c.first, c.second), {})[c.split] = c
        if name not in ASKED:
            raise InputError(f"no question {name!r}; there are {', '.join(ASKED)}")
        if not found:
            parts.append(NOT_YET)
            continue
        known = name == FORGETTING
        heads = ["where", "first", "second", *(["on known levels"] if known else ["held-in", "held-out"])]
        rows = [
            [where or NOTHING, first, "untuned" if second == "none" else second]
            + [less(cells.get(split)) for split in (["known"] if known else ["held_in", "held_out"])]
            for (where, first, second), cells in found.items()
        ]
        parts.append(markdown(heads, rows, words=3))
    return "\n\n".join(parts)


def score(kept: Evidence, words: Sequence[str]) -> str:
    """One rate."""
    name, value, *split = words
    return _cell(kept, _group(kept, value), name, _split(split))


def one_less(kept: Evidence, words: Sequence[str]) -> str:
    """One difference."""
    question, name, value, *split = words
    wanted = "known" if question == FORGETTING else _split(split)
    group = _group(kept, value)
    found = [c for c in kept.swept.of(question, wanted) if (c.values, c.first) == (group.values, name)]
    if len(found) != 1:
        raise InputError(f"has {len(found)} comparisons of {name!r} for {question!r} at {value}", kept.directory)
    return with_interval(found[0].difference)


def _group(kept: Evidence, value: str) -> Group:
    axis = kept.swept.axis
    for group in kept.swept.groups:
        if (axis is None and value == "-") or (axis is not None and f"{group.values[axis]:g}" == value):
            return group
    raise InputError(f"was not swept at {value}", kept.directory)


def rounds(kept: Evidence, words: Sequence[str]) -> str:
    """A row per round, and DEEPTHINK alone."""
    made = kept.rounds
    heads = ["round", "acts", "success", "calls per episode", "MFLOPs per episode", "QUICK alone"]
    heads += ["success, less round 0", "calls, less round 0"]
    deep = made.deepthink
    rows = [[NOTHING, "DEEPTHINK alone", rate(deep), f"{deep.calls:.2f}", f"{deep.flops / 1e6:,.0f}", *[NOTHING] * 3]]
    for each in made.rounds:
        acts, apart = acting(each), each.against_first
        told = [bold(d) for d in ((apart.success, apart.calls) if apart else (None, None))]
        name = f"{each.round}, kept" if each.round == made.kept else str(each.round)
        rows.append(
            [name, acts.name, rate(acts), f"{acts.calls:.2f}", f"{acts.flops / 1e6:,.0f}", rate(each.quick), *told]
        )
    return markdown(heads, rows, words=2)


def round_arms(kept: Evidence, words: Sequence[str]) -> str:
    """A row per round and arm."""
    heads = ["round", "QUICK tuned on", "success alone", "first less this", "calls spent", "trained tokens"]
    heads += ["share of steps", "trajectories"]
    rows = [
        [
            str(each.round),
            arm.arm,
            rate(arm),
            bold(arm.first_above_all),
            f"{arm.calls_spent:,.0f}",
            f"{arm.trained_tokens:,.0f}",
            f"{arm.steps_share:.0%}",
            f"{arm.trajectories:,.0f}",
        ]
        for each in kept.rounds.rounds
        for arm in each.arms
    ]
    return markdown(heads, rows, words=2)


def policies(kept: Evidence, words: Sequence[str]) -> str:
    """A row per policy of the switch."""
    found = kept.results.londi.policies if kept.results.londi else ()
    if not found:
        raise InputError("has no policies", kept.directory)
    heads = ["policy", "success", "calls per episode", "share of steps", found[0].compute_unit, "budget exceeded"]
    rows = [
        [
            p.name,
            rate(p),
            f"{p.deepthink_calls_per_episode:.2f}",
            f"{p.deepthink_share:.0%}",
            f"{p.compute:.3g}",
            f"{p.budget_violations} of {p.episodes}" if p.budget is not None else NOTHING,
        ]
        for p in found
    ]
    return markdown(heads, rows)


TABLES: dict[str, Table] = {
    "about": about,
    "answers": answers,
    "arms": arms,
    "curve": curve,
    "compare": compare,
    "score": score,
    "less": one_less,
    "rounds": rounds,
    "round-arms": round_arms,
    "policies": policies,
}


# -- pages


def written(page: Path, text: str, root: Path = HERE) -> str:
    """A page's text with its tables as they should be.

    Raises:
        InputError: a block is not one, or asks for what was not kept; names page and line.
    """
    if len(_BEGINS.findall(text)) != len(_BLOCK.findall(text)):
        raise InputError("a block <!-- evidence: NAME TABLE --> has no <!-- end -->, or names no table", page)

    def made(block: re.Match[str]) -> str:
        head, name, asked, newline, _, end = block.groups()
        line = text.count("\n", 0, block.start()) + 1
        table, *words = asked.split()
        if table not in TABLES:
            raise InputError(f"no table {table!r}; there are {', '.join(TABLES)}", page, line)
        if not (root / name).is_dir():
            body = NOT_YET if newline else "not measured yet"
        else:
            try:
                body = TABLES[table](Evidence(root / name), words)
            except (InputError, ValueError) as error:
                raise InputError(f"{asked}: {error}", page, line) from None
        return f"{head}\n{body}\n{end}" if newline else f"{head}{body}{end}"

    return _BLOCK.sub(made, text)


def main(argv: Sequence[str] | None = None, pages: Sequence[Path] = PAGES, root: Path = HERE) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a page has other numbers"
    )
    check, wrong = parser.parse_args(argv).check, []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        try:
            now = written(page, text, root)
        except InputError as error:
            print(f"tables: {error}", file=sys.stderr)
            return 2
        if now != text:
            wrong.append(page.name)
            if not check:
                write_text(page, now)
    if check and wrong:
        told = "has numbers that are not" if len(wrong) == 1 else "have numbers that are not"
        print(f"{', '.join(wrong)} {told} those of docs/evidence: run python docs/evidence/tables.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
