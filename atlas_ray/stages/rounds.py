"""Rounds of switching and tuning, the join of LONDI and ATLaS (ours).

Train the switch; collect with it; tune QUICK on its calls; train the switch again with the new QUICK. Every part is a
run directory of ordinary stages (`round_parts.py`), and what is kept follows from paired comparisons
(`round_scores.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from ..data.paired import level_for
from ..data.results import ALWAYS_DEEPTHINK, ALWAYS_QUICK
from ..data.rounds import Collected, LevelCollected, Round, Rounds, TunedArm, load_rounds, write_rounds
from ..engines import engines_kept
from ..recipe.loading import Recipe
from ..rundir.files import RunLog
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from .round_clock import Clock
from .round_parts import Chain, of_rounds, term_of, train_switches
from .round_scores import Judged, Played, common, compared, episodes_of, success_apart, system, verdicts

_PARTS = ("lesson", "tuning", "switch", "scores")
"""Of a round, for each training seed; round 0 has the last alone. All seeds are trained at a time."""


def play_rounds(recipe: Recipe, run_dir: Path) -> Rounds:
    """Play the rounds of a recipe that are not played yet.

    Every training seed of the switch has a chain of rounds of its own; a round is judged over all of them. Writes
    ``rounds/`` (run directories) and ``rounds.json``.

    Raises:
        AtlasError: a part failed. What is done is kept, and a later call goes on from there.
    """
    layout = RunLayout(run_dir)
    if layout.rounds.exists():
        return load_rounds(layout.rounds)
    tuning = of_rounds(recipe)[0].finetune
    with engines_kept(tuning.adapter_rank, sleep=tuning.workers == 0):
        return _play(recipe, run_dir, layout)


def _play(recipe: Recipe, run_dir: Path, layout: RunLayout) -> Rounds:
    config, settings = of_rounds(recipe)
    chains = [Chain(recipe, run_dir, seed) for seed in settings.seeds]
    each = len(chains)
    parts = Counter(dict.fromkeys(_PARTS, config.count * each)) + Counter(scores=each, training=config.count)
    clock = Clock(parts, config.count)
    judged: list[Judged] = []
    why = None
    for number in range(config.count + 1):
        if number and (why := _teach(chains, number, clock)):
            break
        for chain in chains:
            clock.run("scores", number, chain.seed, partial(chain.play, number))
        judged.append(_judged(recipe, chains, number))
        if why := _over(recipe, judged):
            break
    made = _summed_up(recipe, chains, judged, why)
    write_rounds(layout.rounds, made)
    _tell(made, RunLog(run_dir))
    return made


def _teach(chains: Sequence[Chain], number: int, clock: Clock) -> str | None:
    """The parts of a round up to its switch; why it cannot be, where the switch before has called nothing."""
    silent = []
    for chain in chains:
        clock.run("lesson", number, chain.seed, partial(chain.collect, number))
        silent += [] if chain.was_taught(number) else [chain.seed]
    if silent:
        seeds = ", ".join(map(str, silent))
        which = f" of seed {seeds}" if len(chains) > 1 else ""
        return (
            f"the switch{which} of round {number - 1} called nothing in the episodes that it collected and that ended "
            "well, so there was nothing to learn from"
        )
    for chain in chains:
        clock.run("tuning", number, chain.seed, partial(chain.tune, number))
    clock.run("training", number, None, partial(train_switches, chains, number))
    for chain in chains:
        clock.run("switch", number, chain.seed, partial(chain.compare_switch, number))
    return None


def _over(recipe: Recipe, judged: Sequence[Judged]) -> str | None:
    """Why the last round that was judged is the last of all; None where another may follow."""
    config, _ = of_rounds(recipe)
    if not config.stop:
        return None
    last = verdicts(judged, config.margin)[-1]
    if last.why:
        return last.why
    if last.policy == ALWAYS_QUICK:
        return (
            f"in round {len(judged) - 1} QUICK alone succeeds as often as with its switch, within {config.margin:g}, "
            "so there was no call left to learn from"
        )
    return None


def _judged(recipe: Recipe, chains: Sequence[Chain], number: int) -> Judged:
    """The episodes that judge a round."""
    term = term_of(recipe, RunLayout()).name
    paths = [chain.switch_layout(number).switch_judged for chain in chains]
    quick = [episodes_of(path, ALWAYS_QUICK, None) for path in paths]
    switch = [episodes_of(path, term, chain.seed) for path, chain in zip(paths, chains, strict=True)]
    return Judged(quick if number else quick[:1], switch, term)


def _summed_up(recipe: Recipe, chains: Sequence[Chain], judged: Sequence[Judged], why: str | None) -> Rounds:
    """Everything that was played, on the test episodes that all have in common."""
    config, _ = of_rounds(recipe)
    term, run = judged[0].term, chains[0].run
    deepthink = [episodes_of(run.switch_episodes, ALWAYS_DEEPTHINK, None)]
    tests = [_tested(chains, number, term) for number in range(len(judged))]
    alone = [_alone(recipe, chains, number) for number in range(len(judged))]
    everything = [
        deepthink,
        *(p for quick, switch in tests for p in (quick, switch)),
        *(p for a in alone for p in a.values()),
    ]
    seeds = common(*everything)
    rounds = []
    acting: list[Played] = []
    untuned = tests[0][0]
    found = verdicts(judged, config.margin)
    for number, (each, (quick, switch)) in enumerate(zip(found, tests, strict=True)):
        acting.append(quick if each.policy == ALWAYS_QUICK else switch)
        rounds.append(
            Round(
                round=number,
                quick=system(ALWAYS_QUICK, quick, seeds),
                switch=system(term, switch, seeds),
                policy=each.policy,
                alone=each.alone,
                over=each.over,
                gained=each.gained,
                on_test=None if each.over is None else compared(acting[number], acting[each.over], seeds),
                kept=each.kept,
                against_first=compared(acting[number], acting[0], seeds) if number else None,
                learned=success_apart(quick, untuned, seeds) if number else None,
                against_deepthink=compared(acting[number], deepthink, seeds),
                lesson=_lesson(chains, number) if number else None,
                arms=_arms(chains, number, {config.arms[0]: quick, **alone[number]}, seeds) if number else (),
            )
        )
    kept = max(number for number, each in enumerate(found) if each.kept)
    behind = [each.why for each in found[kept + 1 :]]
    return Rounds(
        seeds=tuple(chain.seed for chain in chains),
        term=term,
        tune_from=config.tune_from,
        margin=config.margin,
        deepthink=system(ALWAYS_DEEPTHINK, deepthink, seeds),
        rounds=tuple(rounds),
        kept=kept,
        why="; ".join(behind) or why or "no more rounds were asked for",
    )


def _tested(chains: Sequence[Chain], number: int, term: str) -> tuple[Played, Played]:
    """Test episodes of a round's QUICK alone and of its switch."""
    paths = [chain.switch_layout(number).switch_episodes for chain in chains]
    quick = [episodes_of(path, ALWAYS_QUICK, None) for path in paths]
    switch = [episodes_of(path, term, chain.seed) for path, chain in zip(paths, chains, strict=True)]
    return (quick if number else quick[:1]), switch


def _alone(recipe: Recipe, chains: Sequence[Chain], number: int) -> dict[str, Played]:
    """Test episodes of the QUICKs of a round's controls."""
    config, _ = of_rounds(recipe)
    return {
        arm: [episodes_of(chain.part(number, f"alone-{arm}").switch_episodes, ALWAYS_QUICK, None) for chain in chains]
        for arm in (config.arms[1:] if number else [])
    }


def _lesson(chains: Sequence[Chain], number: int) -> Collected:
    collected = [chain.collected(number) for chain in chains]
    levels = {
        name: LevelCollected(episodes=fmean(c[name][0] for c in collected), kept=fmean(c[name][1] for c in collected))
        for name in collected[0]
    }
    return Collected(
        episodes=sum(level.episodes for level in levels.values()),
        kept=sum(level.kept for level in levels.values()),
        calls=fmean(chain.usage(number)["calls"] for chain in chains),
        levels=levels,
    )


def _arms(
    chains: Sequence[Chain], number: int, played: Mapping[str, Played], seeds: Sequence[int]
) -> tuple[TunedArm, ...]:
    """How each QUICK of a round was tuned, and how it does alone."""
    first = next(iter(played.values()))
    found = []
    for arm, own in played.items():
        scored = system(arm, own, seeds)
        records = [chain.record(number, arm) for chain in chains]  # type: ignore[arg-type]
        levels = () if own is first else (0.95, level_for(len(played) - 1))
        above = [success_apart(first, own, seeds, level) for level in levels]
        found.append(
            TunedArm(
                arm=arm,
                success=scored.success,
                ci95=scored.ci95,
                trajectories=fmean(r["trajectories"] for r in records),
                steps_share=fmean(r["steps_share"] for r in records),
                trained_tokens=fmean(chain.trained_tokens(number, arm) for chain in chains),  # type: ignore[arg-type]
                calls_spent=fmean(chain.calls_spent(number, arm) for chain in chains),  # type: ignore[arg-type]
                first_above=above[0] if above else None,
                first_above_all=above[1] if above else None,
            )
        )
    return tuple(found)


def _tell(made: Rounds, log: RunLog) -> None:
    for each in made.rounds:
        acts = each.quick if each.policy == ALWAYS_QUICK else each.switch
        say(
            f"  round {each.round}: QUICK alone {each.quick.success:.3f}, with the switch {each.switch.success:.3f} at "
            f"{each.switch.calls:.2f} calls per episode; {acts.name} acts"
        )
        log.metric(
            "rounds",
            round=each.round,
            success=acts.success,
            calls=acts.calls,
            quick_success=each.quick.success,
            switch_success=each.switch.success,
            switch_calls=each.switch.calls,
        )
    say(f"  round {made.kept} is the one to use: {made.why}")
