"""The selector ``verified`` on Ray actors: what another would do at steps of failed episodes, then the roll-outs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..agents.attempts import MOST_ATTEMPTS
from ..agents.model_workers import model_workers
from ..agents.spec import AgentSpec, agent_spec, endpoint_spec
from ..agents.throughput import replies_told
from ..agents.unknown_words import Reader
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.workers import ActorPool, chunks, worker_pool
from ..data.kept import outcomes_of
from ..data.pairs import Pair, write_pairs
from ..data.records import Annotation, Step, Trajectory
from ..data.replies import Losses, Replies, summed
from ..errors import InputError
from ..recipe.endpoint import EndpointFields
from ..recipe.loading import Recipe
from ..recipe.select import Verify
from ..recipe.switch import EXPERT
from ..rundir.files import RunLog
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .controls import by_trajectory
from .replays import replay_specs
from .scored_stage import check_words, note_played, say_left_out, scores_path
from .verified import (
    SIDES,
    Branch,
    Criterion,
    Evidence,
    Tried,
    branches_of,
    other_moves,
    pair_of,
    proposed_steps,
    select_by_verified,
)
from .verified_play import Cost, Model, MoveRequest, Part, Result, Work, ask, key_of, play, rest

_CHUNK = 8


class _Stage:
    """Both passes over the failed episodes that are not done, and what they took."""

    def __init__(
        self, recipe: Recipe, run_dir: Path, steps: Mapping[str, Sequence[int]], failed: list[Trajectory]
    ) -> None:
        assert recipe.select is not None
        self.recipe, self.run_dir, self.log = recipe, run_dir, RunLog(run_dir)
        self.config: Verify = recipe.select.verified
        self.file = ResultFile(scores_path(run_dir, "verified"))
        self.steps, self.cost, self.losses = steps, Cost(), Losses(recipe.max_lost_answers)
        self.failed = {t.id: t for t in failed}
        self.moves: dict[str, dict[int, Step]] = {}
        self.ends: dict[tuple[str, Branch], bool] = {}
        self.hopeless: set[tuple[str, Branch]] = set()
        """Roll-outs that were lost now and would be lost again."""
        self.replies: dict[str, Replies] = {}
        self.agent, where, warmth = rollout_agent(recipe)
        self.model = _spec(recipe, self.agent, where, warmth)
        for row in self.file.rows():
            self._note(row, before=True)
        self.specs, unplayable = replay_specs(recipe, failed)
        self.left_out = {t.id: unplayable[t.env] for t in failed if t.env in unplayable and t.id not in self.moves}

    def _note(self, row: Mapping[str, Any], before: bool = False) -> None:
        """Take a line of the file in, of this start or of one ``before``, whose lost answers are asked for again."""
        self.cost.add(row)
        name, lost = row["id"], row.get("lost", False)
        about = name if "step" not in row else key_of(row)[1].episode(name)
        if replies := row.get("replies"):
            # a later line about the same counts
            self.replies[about] = Replies(replies)
            if not (lost and before):
                self.losses.note((self.config.alternative if "step" not in row else self.agent).model, replies)
        if name not in self.failed:
            return
        if "step" in row and not lost:
            self.ends[key_of(row)] = row["success"]
        elif "step" in row and not (row["again"] or before):
            self.hopeless.add(key_of(row))
        elif row.get("proposed") == list(self.steps[name]):
            recorded = self.failed[name].steps
            self.moves[name] = {
                int(t): Step(observation=recorded[int(t)].observation, **move) for t, move in row["moves"].items()
            }

    def ask(self) -> None:
        """The first pass."""
        todo = [t for t in self.failed.values() if t.id not in self.moves and t.id not in self.left_out]
        other, where = self.config.alternative, "select.verified.alternative"
        spec = None if is_expert(other) else _spec(self.recipe, other, where, other.warmth)
        todo = [t for t in todo if self.steps[t.id]]
        if not todo:
            return
        with self._workers("what else to do", len(todo), spec, todo) as (pool, leased, advance):
            cpu_seconds = self.recipe.collect.cpu_seconds if self.recipe.collect else 0.0
            tasks = [MoveRequest(tuple(p), self.steps, self.specs, leased, cpu_seconds) for p in chunks(todo, _CHUNK)]
            for task, result in self.file.stream(pool, ask, tasks, lambda _, found: found.rows):
                self._take(result)
                advance(len(task.trajectories))

    def play(self) -> None:
        """The second pass, in as many attempts as an episode has that is lost to its environment."""
        for _ in range(MOST_ATTEMPTS):
            parts = list[Part]()
            for name, moves in self.moves.items():
                missing = tuple(b for b in self.branches(name) if self._is_missing((name, b)))
                if missing and name not in self.left_out:
                    parts.append((self.failed[name], other_moves(self.failed[name], moves), missing))
            if not parts:
                return
            total = sum(len(branches) for _, _, branches in parts)
            with self._workers("verifying", total, self.model, [t for t, _, _ in parts]) as (pool, leased, advance):
                tasks = [Work(tuple(part), self.specs, leased) for part in chunks(parts, _CHUNK)]
                for _, result in self.file.stream(pool, play, tasks, lambda _, found: found.rows, rest):
                    self._take(result)
                    advance(len(result.rows))

    def branches(self, name: str) -> list[Branch]:
        """All roll-outs of a trajectory."""
        return branches_of(list(other_moves(self.failed[name], self.moves[name])), self.config.rollouts)

    def tried(self, name: str) -> list[Tried]:
        """The steps of a trajectory of which every roll-out is known."""
        found = []
        for step, move in other_moves(self.failed[name], self.moves[name]).items():
            ends = {
                side: [self.ends.get((name, Branch(n, step, side))) for n in range(self.config.rollouts)]
                for side in SIDES
            }
            if all(end is not None for each in ends.values() for end in each):
                won, own = (sum(map(bool, ends[side])) for side in SIDES)
                found.append(Tried(step, move, Evidence(self.config.rollouts, won, own)))
        return found

    def _is_missing(self, key: tuple[str, Branch]) -> bool:
        return key not in self.ends and key not in self.hopeless

    @contextmanager
    def _workers(
        self, title: str, total: int, spec: Model | None, read: Sequence[Trajectory]
    ) -> Iterator[tuple[ActorPool[Any, Any], Any, Callable[[int], None]]]:
        """Workers of a pass, the model that they share, and what the progress line is told."""
        lost = log_lost_workers(self.log, "select")
        if isinstance(spec, AgentSpec):
            check_words(self.recipe, self.log, "verified", spec.model, list(read), Reader.enough)
        with ExitStack() as opened:
            count: Callable[[], Replies] = lambda: summed(self.replies.values())  # noqa: E731
            opened.enter_context(replies_told(self.log, "select", count, selector="verified"))
            progress = opened.enter_context(track(title, total))

            def advance(number: int) -> None:
                words = count().words()
                progress.advance(number, f"{self.cost.steps} steps{words and f' · replies: {words}'}")

            if spec is None:
                yield opened.enter_context(worker_pool(self.recipe, lost)), None, advance
            else:
                yield *opened.enter_context(model_workers(self.recipe, spec, lost)), advance
            self.losses.check()

    def _take(self, result: Result) -> None:
        for row in result.rows:
            self._note(row)
        self.left_out |= result.left_out
        # the replies are noted with their lines
        note_played(self.log, self.losses, self.agent.model, Replies(), result.problems)


def is_expert(fields: EndpointFields) -> bool:
    """Whether a table names each environment's own expert."""
    return fields.model == EXPERT and not fields.base_url


def rollout_agent(recipe: Recipe) -> tuple[EndpointFields, str, float | None]:
    """Who plays on, the field that names it, and its temperature, which is never 0: all roll-outs would be the same."""
    assert recipe.select is not None
    config, collected = recipe.select, recipe.collect.agent if recipe.collect else None
    if config.verified.agent is not None:
        agent, where = config.verified.agent, "select.verified.agent"
    elif collected is not None:
        agent, where = collected, "collect.agent"
    else:
        agent, where = EndpointFields(model=config.model), "select"
    draws = agent.warmth or (agent.base_url and agent.warmth is None)
    return agent, where, agent.warmth if draws else config.temperature


def _spec(recipe: Recipe, fields: EndpointFields, where: str, warmth: float | None) -> Model:
    if not fields.base_url:
        return agent_spec(recipe, fields.model, warmth or 0.0)
    return replace(endpoint_spec(recipe, fields, where), temperature=warmth)


def by_verified(
    recipe: Recipe, run_dir: Path, trajectories: list[Trajectory], proposals: list[Annotation] | None
) -> list[Annotation]:
    """The steps of failed episodes at which another action wins, and pairs of both turns.

    Every move and every roll-out stands in ``annotations/scores/verified.jsonl`` as soon as it is known, so that a
    killed run plays none again. Pairs are in ``pairs/verified.jsonl`` where a step is verified.

    Args:
        recipe: of the run.
        run_dir: of the run.
        trajectories: of any outcome.
        proposals: the proposer's annotations; None: every step is proposed.

    Raises:
        AtlasError: every failed episode was lost, or too many of a model's answers are none. Says why.
        InputError: no episode is known to have failed, none of these can be replayed, or a model's tokenizer knows too
            little of them.
    """
    assert recipe.select is not None and recipe.collect is not None
    config, log, ended = recipe.select.verified, RunLog(run_dir), outcomes_of(trajectories)
    if not ended.failures:
        none = f"verified needs failed episodes, and there are {ended.words()}"
        raise InputError(none, recipe.collect.file or RunLayout(run_dir).expert, None, None, "empty_selection")
    if ended.unknown:
        log.event("select", "left out", selector="verified", trajectories=ended.unknown, why="unknown outcome")
        say(f"  verified: {ended.unknown} of {len(trajectories)} episodes have an unknown outcome, left out")
    failed = [t for t in trajectories if t.success is False]
    by_id = None if proposals is None else by_trajectory(proposals)
    unproposed = [] if by_id is None else [t for t in failed if t.id not in by_id]
    if unproposed:
        why = f"not annotated by {config.propose}"
        log.event("select", "left out", selector="verified", trajectories=len(unproposed), why=why)
        say(f"  verified: {len(unproposed)} of {len(failed)} failed episodes are {why}, left out")
        failed = [t for t in failed if by_id is None or t.id in by_id]
    steps = {
        t.id: proposed_steps(t, None if by_id is None else by_id[t.id], config.most_steps, recipe.seed) for t in failed
    }
    stage = _Stage(recipe, run_dir, steps, failed)
    stage.ask()
    stage.play()
    return _annotated(stage, [t for t in failed if t.id not in stage.left_out], len(failed))


def _annotated(stage: _Stage, there: list[Trajectory], failures: int) -> list[Annotation]:
    """The outcome of both passes, told, with its pairs written."""
    config, recipe, by = stage.config, stage.recipe, stage.config.alternative.model
    criterion = Criterion(config.rollouts, config.wins, config.significance)
    made, pairs, alike, silent, open_steps = list[Annotation](), list[Pair](), 0, 0, 0
    tried_steps = 0
    for t in there:
        moves, tried = stage.moves.get(t.id, {}), stage.tried(t.id) if t.id in stage.moves else []
        others = other_moves(t, moves)
        silent += len(stage.steps[t.id]) - len(moves)
        alike += len(moves) - len(others)
        open_steps += len(others) - len(tried)
        tried_steps += len(tried)
        if others and not tried:
            stage.left_out[t.id] = "roll-outs at each of its steps were lost"
            continue
        annotation = select_by_verified(t, tried, criterion, by)
        made.append(annotation)
        pairs += [pair_of(t, each, by, stage.agent.model) for each in tried if each.step in annotation.critical]
    say_left_out(recipe, stage.run_dir, "verified", stage.left_out, failures)
    proposed = sum(len(stage.steps[t.id]) for t in there)
    say(
        f"  verified: {proposed:,} steps of {len(there):,} failed episodes are proposed; at {alike:,} of them {by} "
        f"does the same, at {silent:,} it has no move, at {open_steps:,} roll-outs were lost"
    )
    say(
        f"  verified: {len(pairs):,} of the other {tried_steps:,} are verified; if no action mattered, at most "
        f"{config.significance * tried_steps:.1f} were to be expected"
    )
    say(f"  verified: {stage.cost.words()}")
    stage.log.metric(
        "select",
        selector="verified",
        failures=failures,
        trajectories=len(made),
        proposed=proposed,
        same=alike,
        no_move=silent,
        lost=open_steps,
        tried=tried_steps,
        verified=len(pairs),
        rollout_steps=stage.cost.steps,
        replayed_steps=stage.cost.replayed,
        calls=stage.cost.calls,
        **({} if stage.cost.read is None else {"tokens_read": stage.cost.read, "tokens_written": stage.cost.written}),
    )
    if pairs:
        write_pairs(RunLayout(stage.run_dir).pairs("verified"), pairs)
    return made
