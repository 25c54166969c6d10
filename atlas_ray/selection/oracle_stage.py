"""The oracle of a recipe: an endpoint asked from here, or a model on Ray actors; every outcome is kept as it comes.

The same oracle marks critical steps (``oracle``) and labels all of them (``mistakes``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

from ..agents.model_workers import model_workers
from ..agents.spec import AgentSpec, agent_spec
from ..agents.unknown_words import Reader, Unknown, refuse, warning
from ..cluster.result_file import log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import chunks
from ..data.records import Annotation, Trajectory
from ..data.replies import Replies, summed
from ..engines.chat_endpoint import ChatEndpoint
from ..engines.endpoint import open_endpoint
from ..errors import AtlasError, EndpointError, InputError
from ..models.loading import load_tokenizer
from ..recipe import select as schema_select
from ..recipe.loading import Recipe
from ..rundir.files import RunLog, append_jsonl, recover_jsonl
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .chat_backend import EngineBackend, tokens_of
from .oracle import Oracle, Prices, price, share_warnings
from .oracle_counts import Estimate, OracleConfig, OracleUsage, Unannotated
from .oracle_prompt import whole_prompt
from .oracle_stop import NoAnswer, too_many_lost, way_out
from .oracle_task import CRITICAL, TASKS, OracleTask
from .scored_stage import scores_path

_PLAIN = schema_select.Oracle()
OracleOutcome = Annotation | Unannotated
OutcomeStream = Iterator[tuple[OracleOutcome | None, OracleUsage, Mapping[str, Replies]]]
"""Outcomes as they come, each with what was asked so far, and what became of it by trajectory."""


def oracle_config(recipe: Recipe) -> OracleConfig:
    """How the oracle of a recipe is asked."""
    assert recipe.select is not None
    asked = recipe.select.oracle
    return OracleConfig(
        fraction=recipe.select.fraction,
        context=asked.context,
        max_tokens=asked.max_tokens,
        temperature=asked.warmth,
        max_reprompts=asked.max_reprompts,
        batch=asked.batch,
        send_schema=asked.send_schema,
        stop_after=asked.stop_after,
        thinking=tuple(recipe.agent.thinking),
    )


def _endpoint(recipe: Recipe) -> ChatEndpoint:
    assert recipe.select is not None
    asked = recipe.select.oracle
    return open_endpoint(asked, asked.concurrency, "select.oracle", recipe.agent.thinking)


def tasks_of(recipe: Recipe) -> list[OracleTask]:
    """What the oracle of a recipe is asked for by its selectors."""
    return [TASKS[name] for name in recipe.select.selectors if name in TASKS] if recipe.select else []


def check_oracle(recipe: Recipe) -> None:
    """Refuse an oracle that cannot be asked, before anything is begun. Sends and loads nothing.

    Raises:
        InputError: names the field.
    """
    if not tasks_of(recipe):
        return
    assert recipe.select is not None
    try:
        oracle_config(recipe)
    except InputError as error:
        raise InputError(error.message, field=f"select.oracle.{error.field}") from None
    asked = recipe.select.oracle
    if asked.base_url:
        _endpoint(recipe).close()
    elif of_servers := [n for n in ("extra", "headers", "send_system") if getattr(asked, n) != getattr(_PLAIN, n)]:
        raise InputError("is a server's, and base_url is missing", field=f"select.oracle.{of_servers[0]}")


def _cache(run_dir: Path, task: OracleTask) -> Path:
    return RunLayout(run_dir).scores(f"{task.selector}-answers")


def _from_endpoint(recipe: Recipe, run_dir: Path, todo: list[Trajectory], asked: OracleTask) -> OutcomeStream:
    endpoint, name = _endpoint(recipe), asked.selector
    try:
        oracle = Oracle(endpoint, oracle_config(recipe), _cache(run_dir, asked), task=asked)
        yield (
            None,
            oracle.usage,
            oracle.replies,
        )  # counted further while it goes on, and told of even if it ends before an outcome
        for outcome in oracle.annotate(todo):
            yield outcome, oracle.usage, oracle.replies
    finally:
        endpoint.close()
        RunLog(run_dir).event("select", "endpoint", selector=name, model=endpoint.model, **asdict(endpoint.usage))
        for note in endpoint.notes:
            RunLog(run_dir).event("select", "left out", selector=name, why=note)
            say(f"  {name}: {note}")


_Task = tuple[list[Trajectory], AgentSpec, OracleConfig, OracleTask]


def _job(task: _Task, state: WorkerState) -> Iterator[tuple[OracleOutcome, OracleUsage, Replies]]:
    trajectories, spec, config, asked = task
    backend = EngineBackend(spec.open_engine(state), spec.model)
    fitting = replace(config, context=min(config.context, backend.engine.context))
    oracle = Oracle(backend, fitting, None, backend.count, asked)
    for outcome in oracle.annotate(trajectories):
        yield outcome, oracle.usage, oracle.replies[outcome.trajectory_id]


def _rest(task: _Task, received: list[Any]) -> Any:
    done = {outcome.trajectory_id for outcome, *_ in received}
    left = [t for t in task[0] if t.id not in done]
    return (left, *task[1:]) if left else None


def _from_actors(recipe: Recipe, run_dir: Path, todo: list[Trajectory], asked: OracleTask) -> OutcomeStream:
    config, log = oracle_config(recipe), RunLog(run_dir)
    assert recipe.select is not None
    model = recipe.select.oracle.model
    spec = replace(agent_spec(recipe, model), slots=config.batch)
    with model_workers(recipe, spec, log_lost_workers(log, "select")) as (pool, leased):
        tasks = [(part, leased, config, asked) for part in chunks(todo, 2 * config.batch)]
        usages, replies = dict[int, OracleUsage](), dict[str, Replies]()
        for task, (outcome, usage, all_replies) in pool.stream(_job, tasks, _rest):
            usages[id(task)], replies[outcome.trajectory_id] = usage, all_replies
            yield outcome, _sum(usages.values()), replies


def _check_words(recipe: Recipe, log: RunLog, todo: list[Trajectory], task: OracleTask) -> None:
    """Say which words of its prompts a local model's tokenizer does not know.

    Raises:
        InputError: there are too many in what the trajectories say, of 2,000 tokens or more.
    """
    assert recipe.select is not None
    model = recipe.select.oracle.model
    tokenizer = load_tokenizer(model)
    prompts, said = Unknown(tokenizer), Unknown(tokenizer)
    if not said.lossy:
        return
    for t in todo:
        steps = (text or "" for step in t.steps for text in (step.observation, step.thought, step.action))
        asked = (message["content"] for message in whole_prompt(t, 1, task).messages("word"))
        for counts, texts in ((said, (t.instruction, *steps)), (prompts, asked)):
            for text in texts:
                counts.note(text, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    if said.tokens >= Reader.enough:
        refuse(said.row(), recipe.unknown_share, model, "Let a model that knows them be the oracle")
    if why := warning(prompts.row(), model):
        log.event("select", "unknown tokens", selector=task.selector, why=why)
        say(f"  {task.selector}: {why}")


def _sum(parts: Any) -> OracleUsage:
    whole = OracleUsage()
    for part in parts:
        for name, value in asdict(part).items():
            old = getattr(whole, name)
            joined = {k: old.get(k, 0) + value.get(k, 0) for k in old | value} if isinstance(old, dict) else old + value
            setattr(whole, name, joined)
    return whole


class _OutcomeFile:
    """The outcomes of a run in its file, and those that are not final yet.

    A trajectory whose answers were refused is ``held`` until another one is annotated, for the asking may end because
    all are refused, and one without an answer until all were asked; of the latter the file keeps what became of the
    replies, until they are asked again.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, path: Path) -> None:
        assert recipe.select is not None
        self._log, self._path, self._stop_after = RunLog(run_dir), path, recipe.select.oracle.stop_after
        self.most = recipe.max_lost_answers
        kept = {row["id"]: row for row in recover_jsonl(path)}
        self.rows = {name: row for name, row in kept.items() if "annotation" in row or "reason" in row}
        self._before = {name: Replies(row.get("replies", {})) for name, row in kept.items()}
        self.usage = OracleUsage()
        self.replies: Mapping[str, Replies] = {}
        self.held, self.lost = list[Unannotated](), list[Unannotated]()

    def add(self, outcome: OracleOutcome) -> None:
        """Keep an outcome.

        Raises:
            AtlasError: too many answers are none.
        """
        if isinstance(outcome, Annotation):
            self.give_up_held()
            self._keep(outcome.trajectory_id, annotation=outcome.row())
        elif outcome.kind in get_args(NoAnswer):
            self.lost.append(outcome)
            append_jsonl(self._path, [self._row(outcome.trajectory_id)])
            self._log.event("select", "no answer", trajectory=outcome.trajectory_id, why=outcome.reason)
            self.check(early=True)
        else:
            self.held.append(outcome)
            if len(self.held) >= self._stop_after:
                self.give_up_held()

    def give_up_held(self) -> None:
        """The trajectories whose answers were refused stay unannotated."""
        for outcome in self.held:
            self._keep(outcome.trajectory_id, reason=outcome.reason)
            self._log.event("select", "unannotated", trajectory=outcome.trajectory_id, why=outcome.reason)
        self.held = []

    def finish(self, trajectories: int) -> None:
        """All were asked about.

        Raises:
            AtlasError: too many answers are none.
            EndpointError: another time may bring some of them.
        """
        self.give_up_held()
        self.check()
        again = [outcome for outcome in self.lost if outcome.kind == "endpoint"]
        self.held = [outcome for outcome in self.lost if outcome.kind != "endpoint"]
        self.give_up_held()
        if again:
            raise EndpointError(
                f"{len(again)} of {trajectories} trajectories got no answer; the same command asks about them again. "
                f"The last one: {again[-1].reason}"
            )

    def check(self, early: bool = False) -> None:
        """Refuse to go on where too many answers are none."""
        if too_many_lost(self.usage.failed, self.usage.requests, self.most, early):
            kinds = Counter(outcome.kind for outcome in self.lost)
            raise AtlasError(
                f"the oracle: {self.usage.failed} of {self.usage.requests} answers are none, and max_lost_answers "
                f"allows {self.most:.0%}: {way_out(kinds.most_common(1)[0][0])}. The last one: {self.lost[-1].reason}"
            )

    def _keep(self, name: str, **what: Any) -> None:
        self.rows[name] = self._row(name, **what)
        append_jsonl(self._path, [self.rows[name]])

    def _row(self, name: str, **what: Any) -> dict[str, Any]:
        replies = self.replies.get(name, Replies()).row()
        return {"id": name, **what, **({"replies": replies} if replies else {})}

    def all_replies(self) -> Replies:
        """What became of all replies, of trajectories that are not asked about again by earlier starts too."""
        return summed({**self._before, **self.replies}.values())


def by_oracle(
    recipe: Recipe, run_dir: Path, trajectories: list[Trajectory], task: OracleTask = CRITICAL
) -> list[Annotation]:
    """Ask about every trajectory that was not asked about; what stays invalid is unannotated, said and counted.

    Args:
        recipe: has the oracle's table.
        run_dir: answers and outcomes are kept in its ``annotations/scores/``, by the name of the selector.
        trajectories: to ask about.
        task: what is asked.

    Raises:
        AtlasError: too many answers are none, or refused alike; what was answered well is kept.
        EndpointError: the endpoint refuses, or gave no answer about some; all answers so far are kept.
        InputError: a local model's tokenizer knows too little of the trajectories.
    """
    assert recipe.select is not None
    log, asked, name = RunLog(run_dir), recipe.select.oracle, task.selector
    outcomes = _OutcomeFile(recipe, run_dir, scores_path(run_dir, name))
    rows = outcomes.rows
    todo = [t for t in trajectories if t.id not in rows]
    answers = _from_endpoint if asked.base_url else _from_actors
    if todo:
        if not asked.base_url:
            _check_words(recipe, log, todo, task)
        try:
            with track(name, len(trajectories), len(rows)) as progress:
                for outcome, outcomes.usage, replies in answers(recipe, run_dir, todo, task):
                    outcomes.replies = replies
                    if outcome is not None:
                        outcomes.add(outcome)
                        progress.advance(1, _progress_text(outcomes.usage, outcomes.all_replies()))
        finally:
            usage = outcomes.usage
            log.metric("select", selector=name, **_numbers(usage))
            log.event("select", "answers", selector=name, **asdict(usage))
            log.event("select", "replies", selector=name, **outcomes.all_replies().row())
            say(f"  {name}: {_summary(usage, Prices(asked.price_prompt, asked.price_completion))}")
        outcomes.finish(len(trajectories))
    made = [Annotation.model_validate(rows[t.id]["annotation"]) for t in trajectories if "annotation" in rows[t.id]]
    if len(made) < len(trajectories):
        say(f"  {name}: {len(trajectories) - len(made)} of {len(trajectories)} trajectories stay unannotated")
    for line in share_warnings(made, trajectories):
        log.event("select", "unlike the others", selector=name, why=line)
        say(f"  {name}: look at {line}")
    return made


def estimate_oracle(
    recipe: Recipe, run_dir: Path, trajectories: list[Trajectory], task: OracleTask = CRITICAL
) -> tuple[Estimate, float]:
    """What the oracle would be asked now, and what it would cost, without asking. A local model is not loaded."""
    assert recipe.select is not None
    asked = recipe.select.oracle
    done = _OutcomeFile(recipe, run_dir, scores_path(run_dir, task.selector)).rows
    todo = [t for t in trajectories if t.id not in done]
    if asked.base_url:
        backend: Any = _endpoint(recipe)
        oracle = Oracle(backend, oracle_config(recipe), _cache(run_dir, task), tokens_of, task)
        backend.close()
    else:
        tokenizer = load_tokenizer(asked.model)
        count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
        oracle = Oracle(_NoBackend(asked.model), oracle_config(recipe), None, count, task)
    made = oracle.estimate(todo)
    return made, price(made, Prices(asked.price_prompt, asked.price_completion))


def estimates(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> Iterator[str]:
    """A line for each selector that asks the oracle: what it would be asked, and what that would cost."""
    for task in tasks_of(recipe) or [CRITICAL]:
        made, money = estimate_oracle(recipe, run_dir, trajectories, task)
        yield (
            ("" if task == CRITICAL else f"{task.selector}: ")
            + f"{made.trajectories} trajectories to ask about: {made.calls} requests, {made.cache_hits} from the "
            f"cache, {made.prompt_tokens:,} prompt tokens, at most {made.completion_tokens:,} written"
            + (f", {made.too_long} too long for any window" if made.too_long else "")
            + (f"; at the given prices {money:.2f}" if money else "")
        )


class _NoBackend:
    """A backend that is never asked."""

    def __init__(self, model: str) -> None:
        self.model = model

    def complete(self, conversations: Any, **_: Any) -> Any:
        raise NotImplementedError


def _numbers(usage: OracleUsage) -> dict[str, int]:
    counted = asdict(usage)
    return {k: v if isinstance(v, int) else sum(v.values()) for k, v in counted.items()}


def _progress_text(usage: OracleUsage, replies: Replies) -> str:
    """For the progress line."""
    words = replies.words()
    return f"{usage.prompt_tokens + usage.completion_tokens:,} tokens{words and f' · replies: {words}'}"


def _summary(usage: OracleUsage, prices: Prices) -> str:
    parts = [
        f"{usage.requests} requests, {usage.reasked} asked again, {usage.cache_hits} from the cache",
        f"{usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} written tokens",
    ]
    if any(prices):
        parts.append(f"at the given prices {price(usage, prices):.2f}")
    if usage.refused:
        parts.append("refused: " + ", ".join(f"{n} {kind}" for kind, n in sorted(usage.refused.items())))
    if usage.failed:
        parts.append(f"without an answer: {usage.failed}")
    if usage.unannotated:
        parts.append("given up: " + ", ".join(f"{n} {kind}" for kind, n in sorted(usage.unannotated.items())))
    return " · ".join(parts)
