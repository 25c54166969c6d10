"""Rounds of a model that learns from its own runs (ours; expert iteration is the field's word for some of it).

Collect with the present model, select, tune, score; then again with the model that was tuned. The run's own stages are
the first round, every later part is a run directory of ordinary stages (`own_round_parts.py`), and which round is kept
follows from paired comparisons (`own_round_scores.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from ..data.own_rounds import OwnArm, OwnLesson, OwnRound, OwnRounds, load_own_rounds, write_own_rounds
from ..data.paired import level_for
from ..engines import engines_kept
from ..errors import InputError
from ..recipe.loading import Arm, Recipe
from ..rundir.files import RunLog
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from .own_round_parts import OwnChain
from .own_round_scores import Episode, Played, apart, cell, common, own_verdicts
from .round_clock import Clock

Models = Sequence[Played]
"""Of each training seed; of the untuned model there is one."""


def play_own_rounds(recipe: Recipe, run_dir: Path) -> OwnRounds:
    """Play the rounds of a recipe that are not played yet; the first lies in the run directory itself.

    Writes ``rounds/`` (run directories) and ``own-rounds.json``.

    Raises:
        InputError: the first round, the recipe's own stages, is not played.
        AtlasError: a part failed. What is done is kept, and a later call goes on from there.
    """
    layout = RunLayout(run_dir)
    if layout.own_rounds.exists():
        return load_own_rounds(layout.own_rounds)
    if not layout.atlas_scores.exists():
        missing = "needs the stage evaluate, which has not been run: the recipe's own stages are the first round"
        raise InputError(missing, run_dir, None, "rounds", "missing_stage")
    tuning = recipe.finetune
    assert tuning is not None
    with engines_kept(tuning.adapter_rank, sleep=tuning.workers == 0):
        return _play(recipe, run_dir, layout)


def _play(recipe: Recipe, run_dir: Path, layout: RunLayout) -> OwnRounds:
    config, tuning = recipe.rounds, recipe.finetune
    assert config is not None and tuning is not None
    chains = [OwnChain(recipe, run_dir, seed) for seed in tuning.seeds]
    each = len(chains)
    later = (config.count - 1) * each
    clock = Clock(Counter(lesson=later, tuning=later, scores=config.count * each + 1), config.count)
    judged: list[Models] = []
    why: str | None = None
    for number in range(config.count + 1):
        if number > 1 and (why := _teach(chains, number, clock)):
            break
        for chain in chains if number else chains[:1]:
            clock.run("scores", number, chain.seed if number else None, partial(chain.judge, number))
        judged.append([chain.judged(number) for chain in (chains if number else chains[:1])])
        if config.stop and own_verdicts(judged)[-1].why:
            break
    made = _summed_up(chains, judged, why)
    write_own_rounds(layout.own_rounds, made)
    _tell(made, RunLog(run_dir))
    return made


def _teach(chains: Sequence[OwnChain], number: int, clock: Clock) -> str | None:
    """The parts of a round up to its models; why it cannot be, where there is nothing to learn from."""
    reasons: dict[int, str] = {}

    def teach(chain: OwnChain) -> None:
        if why := chain.teach(number):
            reasons[chain.seed] = why

    for chain in chains:
        clock.run("lesson", number, chain.seed, partial(teach, chain))
    if reasons:
        which = f" of seed {', '.join(map(str, reasons))}" if len(chains) > 1 else ""
        return f"in round {number}{which} there was nothing to learn from: {next(iter(reasons.values()))}"
    for chain in chains:
        clock.run("tuning", number, chain.seed, partial(chain.tune, number))
    return None


def _summed_up(chains: Sequence[OwnChain], judged: Sequence[Models], why: str | None) -> OwnRounds:
    """Everything that was played, on the test episodes that all have in common."""
    first, config = chains[0], chains[0].config
    arms = first.tuning.arms
    tests = [
        {arm.name: [chain.tested(number, arm) for chain in chains] for arm in arms} for number in range(1, len(judged))
    ]
    untuned: Models = [first.tested(0)]
    everything = [untuned, *(model for each in tests for model in each.values())]
    inside, outside = (
        common(everything, lambda episode, levels=levels: episode[0] in levels)  # type: ignore[misc]
        for levels in (first.scoring.held_in, first.scoring.held_out)
    )
    rounds = []
    for number, verdict in enumerate(own_verdicts(judged)):
        model = tests[number - 1][first.first.name] if number else untuned
        rounds.append(
            OwnRound(
                round=number,
                held_in=cell(model, inside),
                held_out=cell(model, outside) if outside else None,
                judged=cell(judged[number], common([judged[number]])),
                over=verdict.over,
                gained=verdict.gained,
                kept=verdict.kept,
                against_first=apart(model, untuned, inside) if number else None,
                against_first_out=apart(model, untuned, outside) if number and outside else None,
                lesson=_lesson(chains, number) if number else None,
                arms=_arms(chains, number, tests[number - 1], inside, outside) if number else (),
            )
        )
    kept = max(each.round for each in rounds if each.kept)
    behind = [each.why for each in own_verdicts(judged)[kept + 1 :]]
    return OwnRounds(
        seeds=tuple(chain.seed for chain in chains),
        base=first.tuning.base,
        arm=first.first.name,
        tune_from=config.tune_from,
        rounds=tuple(rounds),
        kept=kept,
        why="; ".join([*behind, *([why] if why else [])]) or "no more rounds were asked for",
    )


def _lesson(chains: Sequence[OwnChain], number: int) -> OwnLesson:
    ended = [chain.outcomes(number) for chain in chains]
    return OwnLesson(episodes=fmean(n for n, _ in ended), successes=fmean(wins for _, wins in ended))


def _arms(
    chains: Sequence[OwnChain],
    number: int,
    played: dict[str, list[Played]],
    inside: Sequence[Episode],
    outside: Sequence[Episode],
) -> tuple[OwnArm, ...]:
    """How each model of a round was tuned, and how it does."""
    arms: list[Arm] = chains[0].tuning.arms
    found = []
    for arm in arms:
        own, first = played[arm.name], played[arms[0].name]
        records = [chain.record(number, arm) for chain in chains]
        flops = [chain.flops(number, arm) for chain in chains]
        above = [] if own is first else [apart(first, own, inside, level) for level in (0.95, level_for(len(arms) - 1))]
        found.append(
            OwnArm(
                arm=arm.name,
                held_in=cell(own, inside),
                held_out=cell(own, outside) if outside else None,
                examples=fmean(record["trajectories"] for record in records),
                steps_share=fmean(record["steps_share"] for record in records),
                trained_tokens=fmean(chain.trained_tokens(number, arm) for chain in chains),
                flops=None if None in flops else fmean(each for each in flops if each is not None),
                first_above=above[0] if above else None,
                first_above_all=above[1] if above else None,
            )
        )
    return tuple(found)


def _tell(made: OwnRounds, log: RunLog) -> None:
    for each in made.rounds:
        out = f", held-out {each.held_out.success:.3f}" if each.held_out else ""
        taught = f"; it learned from {each.lesson.successes:,.0f} successes" if each.lesson else ""
        taught += f" of {each.lesson.episodes:,.0f} episodes" if each.lesson else ""
        say(f"  round {each.round}: held-in {each.held_in.success:.3f}{out}{taught}")
        scores = {"held_in_success": each.held_in.success, "judged_success": each.judged.success}
        scores |= {"held_out_success": each.held_out.success} if each.held_out else {}
        log.metric("rounds", round=each.round, **scores)
    say(f"  round {made.kept} is the one to use: {made.why}")
