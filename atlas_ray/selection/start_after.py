"""A test of criticality that needs no training: the untuned model goes on behind the marked steps (ATLaS, Table 6).

If marked steps decide the outcome, the model does better behind them than behind as many random steps of the same
trajectories. Ours: which random steps, that a last step is never started after, the intervals, and that the place in
the episode is given beside the success, since an episode that is begun later is also easier.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..agents.model_workers import model_workers
from ..agents.rollout import EpisodeStart, EpisodeStarter, rollout
from ..agents.spec import AgentSpec, agent_spec
from ..agents.throughput import CounterSample, ThroughputMeter, replies_told, sample_counters
from ..agents.unknown_words import Reader
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import chunks
from ..data.records import Annotation, Trajectory
from ..data.replies import Losses, Replies, summed
from ..recipe.loading import Recipe
from ..rundir.files import RunLog, write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .bootstrap import bootstrap_ci95
from .controls import by_trajectory
from .ensembles import AnnotationsBySelector
from .replays import Begin, Specs, replay_all, replay_specs, start_at
from .scored_stage import check_words, note_played, perplexity_model, say_left_out

RANDOM, BEGINNING = "random", "beginning"
_CHUNK = 8

Places = Mapping[str, Sequence[int]]
"""By trajectory id: the steps behind which to start; -1 is the beginning."""


@dataclass(frozen=True)
class _Task:
    agent: AgentSpec
    specs: Specs
    horizon: int
    work: tuple[tuple[Trajectory, tuple[int, ...]], ...]


def random_places(trajectory: Trajectory, count: int, seed: int) -> tuple[int, ...]:
    """``count`` steps, all but the last, drawn without replacement; depends on seed, count and trajectory id only."""
    drawn = random.Random(f"start-after/{seed}/{trajectory.id}").sample(range(len(trajectory.steps) - 1), count)
    return tuple(sorted(drawn))


def places_of(trajectories: Iterable[Trajectory], annotations: Iterable[Annotation]) -> dict[str, tuple[int, ...]]:
    """The marked steps of every annotated trajectory, less a last step, behind which nothing is left to do."""
    by_id = by_trajectory(annotations)
    found = {
        t.id: tuple(s for s in by_id[t.id].critical if s < len(t.steps) - 1) for t in trajectories if t.id in by_id
    }
    return {name: places for name, places in found.items() if places}


def _starts(task: _Task, begin: Begin, left_out: dict[str, str]) -> Iterator[list[EpisodeStart]]:
    for trajectory, places in task.work:
        replays, missing = replay_all([trajectory], task.specs, begin)
        left_out |= missing
        if missing:
            continue
        states = replays[trajectory.id].states
        # each one's history is a prefix of the next one's, so they share a slot
        yield [start_at(trajectory, states[p + 1], p + 1, f"{trajectory.id}@{p}", begin) for p in places]


_Found = tuple[dict[str, Any] | None, CounterSample, list[str], dict[str, str], Replies]
"""A start that was played, the counters of its agent, what went wrong since, why trajectories are left out, replies."""


def _job(task: _Task, state: WorkerState) -> Iterator[_Found]:
    agent, problems, left_out = task.agent.agent(state), list[str](), dict[str, str]()
    begin = state.get_or_create(EpisodeStarter).begin
    for finished in rollout(agent, _starts(task, begin, left_out), task.horizon):
        name, _, place = finished.start.id.rpartition("@")
        if finished.error:
            problems.append(f"{finished.start.id}: {finished.error}")
        row: dict[str, Any] = {"id": name, "after": int(place), "success": finished.success}
        row |= {"steps": len(finished.steps), **({"replies": r} if (r := finished.replies.row()) else {})}
        row |= {"lost": True} if finished.lost else {}
        yield row, sample_counters(agent, state), problems[:], dict(left_out), finished.replies
        problems.clear()
    if problems or left_out:
        yield None, sample_counters(agent, state), problems, left_out, Replies()


def start_after(
    recipe: Recipe, run_dir: Path, trajectories: Sequence[Trajectory], annotated: AnnotationsBySelector
) -> list[dict[str, Any]]:
    """Play behind the marked steps of each selector, behind as many random ones, and from the beginning.

    Every start is played once, whoever asks for it; ``annotations/scores/start-after.jsonl`` keeps what was played and
    ``annotations/scores/start-after.json`` the result.

    Returns:
        One row per selector: ``selector``, ``trajectories``, ``starts``, and for it, ``random`` and ``beginning`` the
        ``success`` and mean ``place`` in the episode (0 to 1); ``difference`` to random with its ``ci95``.

    Raises:
        AtlasError: too many of the model's answers are none; says why.
        InputError: none of the trajectories can be replayed, or the model's tokenizer knows too little of them.
    """
    config, log = recipe.select, RunLog(run_dir)
    assert config is not None
    file = ResultFile(RunLayout(run_dir).scores("start-after"))
    chosen = [t for t in trajectories if len(t.steps) > 1][: config.start_after_trajectories]
    wanted = {name: places_of(chosen, annotated[name]) for name in config.start_after}
    drawn = {
        name: {t.id: random_places(t, len(places[t.id]), recipe.seed) for t in chosen if t.id in places}
        for name, places in wanted.items()
    }
    kept = {(row["id"], row["after"]): row for row in file.rows()}
    rows = {key: row for key, row in kept.items() if not row.get("lost")}  # lost ones are played again
    replies, losses = summed(row.get("replies", {}) for row in rows.values()), Losses(recipe.max_lost_answers)
    work = []
    for t in chosen:
        asked = {p for each in (*wanted.values(), *drawn.values()) for p in each.get(t.id, ())}
        left = tuple(sorted(p for p in asked | ({-1} if asked else set()) if (t.id, p) not in rows))
        if left:
            work.append((t, left))
    specs, unplayable = replay_specs(recipe, chosen)
    left_out = {t.id: unplayable[t.env] for t, _ in work if t.env in unplayable}
    work = [(t, left) for t, left in work if t.id not in left_out]
    spec = agent_spec(recipe, perplexity_model(recipe))
    if work:
        check_words(recipe, log, "start-after", spec.model, [t for t, _ in work], Reader.enough)
    total = sum(len(places) for _, places in work)
    losses.note(spec.model, replies)
    with (
        replies_told(log, "select", lambda: replies, about="start-after"),
        track("starts after marked steps", total) as progress,
        model_workers(recipe, spec, log_lost_workers(log, "select")) as (pool, leased),
    ):
        flow = ThroughputMeter("select", log, progress, recipe.engine.actors or max(1, recipe.workers))
        tasks = [_Task(leased, specs, config.start_after_steps, tuple(part)) for part in chunks(work, _CHUNK)]
        played = file.stream(pool, _job, tasks, lambda _, found: [found[0]] if found[0] else [], _rest)
        for _, (row, seen, problems, missing, written) in played:
            left_out |= missing
            replies.add(written)
            note_played(log, losses, spec.model, written, problems)
            if row is not None and not row.get("lost"):
                rows[row["id"], row["after"]] = row
                flow.add(seen, row["steps"], (words := replies.words()) and f"replies: {words}")
        losses.check()
    if left_out:
        asked_for = len({name for places in wanted.values() for name in places})
        say_left_out(recipe, run_dir, "start after", left_out, asked_for)
    made = [_compared(name, chosen, wanted[name], drawn[name], rows) for name in config.start_after]
    write_json(file.path.with_suffix(".json"), made)
    for found in made:
        if not found["trajectories"]:
            say(f"  {found['selector']}: no start behind its steps could be played (events.jsonl says why)")
            continue
        low, high = found["ci95"]
        say(
            f"  {spec.model} after {found['starts']} steps of {found['selector']}: {found['success']:.2f}, after "
            f"random ones {found[RANDOM]['success']:.2f} ({found['difference']:+.2f} [{low:+.2f}, {high:+.2f}]), from "
            f"the beginning {found[BEGINNING]['success']:.2f}"
        )
    return made


def _rest(task: _Task, received: list[Any]) -> _Task | None:
    done = {(row["id"], row["after"]) for row, *_ in received if row is not None}
    left = tuple((t, tuple(p for p in places if (t.id, p) not in done)) for t, places in task.work)
    left = tuple((t, places) for t, places in left if places)
    return _Task(task.agent, task.specs, task.horizon, left) if left else None


def _compared(
    selector: str,
    trajectories: Sequence[Trajectory],
    wanted: Places,
    drawn: Places,
    rows: Mapping[tuple[str, int], Mapping[str, Any]],
) -> dict[str, Any]:
    """One selector against random places, over the trajectories of which every start was played."""
    kinds = {"marked": wanted, RANDOM: drawn, BEGINNING: {name: (-1,) for name in wanted}}
    here = [
        t for t in trajectories if t.id in wanted and all((t.id, p) in rows for k in kinds.values() for p in k[t.id])
    ]
    wins: dict[str, list[tuple[int, int]]] = {}
    places: dict[str, list[float]] = {}
    for kind, by_id in kinds.items():
        wins[kind] = [(sum(rows[t.id, p]["success"] for p in by_id[t.id]), len(by_id[t.id])) for t in here]
        places[kind] = [(p + 1) / len(t.steps) for t in here for p in by_id[t.id]]
    share = {kind: sum(w for w, _ in each) / max(1, sum(n for _, n in each)) for kind, each in wins.items()}
    about = {k: {"success": share[k], "place": float(np.mean(places[k])) if here else 0.0} for k in kinds}
    return {
        "selector": selector,
        "trajectories": len(here),
        "starts": sum(n for _, n in wins["marked"]),
        **about["marked"],
        RANDOM: about[RANDOM],
        BEGINNING: about[BEGINNING],
        "difference": share["marked"] - share[RANDOM],
        "ci95": _interval(wins["marked"], wins[RANDOM]),
    }


def _interval(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """95 % interval of the difference of two shares, trajectories resampled in pairs; none of them gives 0 to 0."""
    if not first:
        return 0.0, 0.0
    both_2N2 = np.array([first, second])

    def difference(drawn_N: Any) -> float:
        (won, played), (won_other, played_other) = both_2N2[:, drawn_N].sum(1).tolist()
        return float(won / played - won_other / played_other)

    return bootstrap_ci95(len(first), difference)
