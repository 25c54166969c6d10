"""The oracle of a recipe: an endpoint asked from here, or a model on Ray actors; every outcome is kept as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..agent_spec import AgentSpec, agent_spec
from ..engines import EnginePool
from ..engines.endpoint import open_endpoint
from ..engines.openai import ChatEndpoint
from ..errors import EndpointError
from ..files import RunLog, append_jsonl, recover_jsonl
from ..models import load_tokenizer
from ..progress import say, track
from ..recipe import Recipe
from ..trajectory import Annotation, Trajectory
from ..workers import chunks, worker_pool
from .oracle import Estimate, Oracle, OracleConfig, OracleUsage, Prices, Unannotated, price, share_warnings
from .oracle_writer import EngineWriter, tokens_of
from .scored import log_retries, scores_path

Outcome = Annotation | Unannotated


def oracle_config(recipe: Recipe) -> OracleConfig:
    """How the oracle of a recipe is asked."""
    assert recipe.select is not None
    asked = recipe.select.oracle
    return OracleConfig(
        fraction=recipe.select.fraction,
        context=asked.context,
        max_tokens=asked.max_tokens,
        temperature=asked.warmth,
        reasks=asked.reasks,
        batch=asked.batch,
        send_schema=asked.send_schema,
        thinking=tuple(recipe.agent.thinking),
    )


def _endpoint(recipe: Recipe) -> ChatEndpoint:
    assert recipe.select is not None
    asked = recipe.select.oracle
    return open_endpoint(asked, asked.concurrency, "select.oracle")


def _cache(run_dir: Path) -> Path:
    return run_dir / "annotations" / "scores" / "oracle-answers.jsonl"


def _from_endpoint(recipe: Recipe, run_dir: Path, todo: list[Trajectory]) -> Iterator[tuple[Outcome, OracleUsage]]:
    endpoint = _endpoint(recipe)
    try:
        oracle = Oracle(endpoint, oracle_config(recipe), _cache(run_dir))
        for outcome in oracle.annotate(todo):
            yield outcome, oracle.usage
    finally:
        endpoint.close()


def _job(
    task: tuple[list[Trajectory], AgentSpec, OracleConfig], kept: dict[str, Any]
) -> Iterator[tuple[Outcome, OracleUsage]]:
    trajectories, spec, config = task
    writer = EngineWriter(spec.open_engine(kept), spec.model)
    oracle = Oracle(writer, replace(config, context=min(config.context, writer.engine.context)), None, writer.count)
    for outcome in oracle.annotate(trajectories):
        yield outcome, oracle.usage


def _rest(task: tuple[list[Trajectory], AgentSpec, OracleConfig], received: list[Any]) -> Any:
    done = {outcome.trajectory_id for outcome, _ in received}
    left = [t for t in task[0] if t.id not in done]
    return (left, *task[1:]) if left else None


def _from_actors(recipe: Recipe, run_dir: Path, todo: list[Trajectory]) -> Iterator[tuple[Outcome, OracleUsage]]:
    config, log = oracle_config(recipe), RunLog(run_dir)
    assert recipe.select is not None
    model = recipe.select.oracle.model
    spec = replace(agent_spec(recipe, model), slots=config.batch)
    with (
        worker_pool(recipe, log_retries(log)) as pool,
        EnginePool(recipe.engine, model, recipe.workers, config.batch, recipe.placement.asks("engines")) as engines,
    ):
        tasks = [(part, spec.seated(engines.seats), config) for part in chunks(todo, 2 * config.batch)]
        usages: dict[int, OracleUsage] = {}
        for task, (outcome, usage) in pool.stream(_job, tasks, _rest):
            usages[id(task)] = usage
            yield outcome, _sum(usages.values())


def _sum(parts: Any) -> OracleUsage:
    whole = OracleUsage()
    for part in parts:
        for name, value in asdict(part).items():
            old = getattr(whole, name)
            joined = {k: old.get(k, 0) + value.get(k, 0) for k in old | value} if isinstance(old, dict) else old + value
            setattr(whole, name, joined)
    return whole


def by_oracle(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    """Ask about every trajectory that was not asked about; what stays invalid is unannotated, said and counted.

    Raises:
        EndpointError: the endpoint refuses, or gave no answer about some; all answers so far are kept.
    """
    assert recipe.select is not None
    log, asked, path = RunLog(run_dir), recipe.select.oracle, scores_path(run_dir, "oracle")
    rows = {row["id"]: row for row in recover_jsonl(path)}
    todo = [t for t in trajectories if t.id not in rows]
    usage, unanswered = OracleUsage(), list[Unannotated]()
    answers = _from_endpoint if asked.base_url else _from_actors
    if todo:
        with track("oracle", len(trajectories), len(rows)) as progress:
            for outcome, usage in answers(recipe, run_dir, todo):
                if isinstance(outcome, Unannotated) and outcome.kind == "endpoint":
                    unanswered.append(outcome)
                    log.event("select", "no answer", trajectory=outcome.trajectory_id, why=outcome.reason)
                    continue
                row: dict[str, Any] = {"id": outcome.trajectory_id}
                if isinstance(outcome, Annotation):
                    row["annotation"] = outcome.row()
                else:
                    row["reason"] = outcome.reason
                    log.event("select", "unannotated", trajectory=outcome.trajectory_id, why=outcome.reason)
                append_jsonl(path, [row])
                rows[outcome.trajectory_id] = row
                progress.advance(1, f"{usage.prompt_tokens + usage.completion_tokens:,} tokens")
        log.metric("select", selector="oracle", **_numbers(usage))
        say(f"  oracle: {_said(usage, Prices(asked.price_prompt, asked.price_completion))}")
    if unanswered:
        raise EndpointError(
            f"{len(unanswered)} of {len(trajectories)} trajectories got no answer; the same command asks about them "
            f"again. The last one: {unanswered[-1].reason}"
        )
    made = [Annotation.model_validate(rows[t.id]["annotation"]) for t in trajectories if "annotation" in rows[t.id]]
    if len(made) < len(trajectories):
        say(f"  oracle: {len(trajectories) - len(made)} of {len(trajectories)} trajectories stay unannotated")
    for line in share_warnings(made, trajectories):
        log.event("select", "unlike the others", selector="oracle", why=line)
        say(f"  oracle: look at {line}")
    return made


def estimate_oracle(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> tuple[Estimate, float]:
    """What the oracle would be asked now, and what it would cost, without asking. A local model is not loaded."""
    assert recipe.select is not None
    asked = recipe.select.oracle
    done = {row["id"] for row in recover_jsonl(scores_path(run_dir, "oracle"))}
    todo = [t for t in trajectories if t.id not in done]
    if asked.base_url:
        writer: Any = _endpoint(recipe)
        oracle = Oracle(writer, oracle_config(recipe), _cache(run_dir), tokens_of)
        writer.close()
    else:
        tokenizer = load_tokenizer(asked.model)
        count = lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])  # noqa: E731
        oracle = Oracle(_Nobody(asked.model), oracle_config(recipe), None, count)
    made = oracle.estimate(todo)
    return made, price(made, Prices(asked.price_prompt, asked.price_completion))


class _Nobody:
    """A writer that is never asked."""

    def __init__(self, model: str) -> None:
        self.model = model

    def complete_each(self, conversations: Any, **_: Any) -> Any:
        raise NotImplementedError


def _numbers(usage: OracleUsage) -> dict[str, int]:
    counted = asdict(usage)
    return {k: v if isinstance(v, int) else sum(v.values()) for k, v in counted.items()}


def _said(usage: OracleUsage, prices: Prices) -> str:
    parts = [
        f"{usage.requests} requests, {usage.reasked} asked again, {usage.cache_hits} from the cache",
        f"{usage.prompt_tokens:,} prompt and {usage.completion_tokens:,} written tokens",
    ]
    if any(prices):
        parts.append(f"at the given prices {price(usage, prices):.2f}")
    if usage.refused:
        parts.append("refused: " + ", ".join(f"{n} {kind}" for kind, n in sorted(usage.refused.items())))
    if usage.unannotated:
        parts.append("given up: " + ", ".join(f"{n} {kind}" for kind, n in sorted(usage.unannotated.items())))
    return " · ".join(parts)
