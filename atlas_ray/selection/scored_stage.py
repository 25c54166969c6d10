"""Selectors that give every step a number first: value, perplexity, entropy. They stay in ``annotations/scores``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..agents.model_workers import model_workers
from ..agents.rendering import Prompt, Renderer
from ..agents.rendering_chat import make_renderer
from ..agents.rollout import UNANSWERED, EpisodeStarter
from ..agents.spec import AgentSpec, agent_spec
from ..agents.throughput import replies_told
from ..agents.unknown_words import Reader, refuse, survey, warning
from ..cluster.resources import scorer_request
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import ActorPool, chunks
from ..data.parsing import Style
from ..data.reasons import counted, told
from ..data.records import Annotation, Trajectory
from ..data.replies import Losses, Replies, summed
from ..errors import AtlasError, InputError
from ..models.loading import load_model, load_tokenizer
from ..recipe.loading import Recipe
from ..recipe.select import BY_BASE, with_members
from ..rundir.files import RunLog, append_jsonl, recover_jsonl
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .entropy import entropies, select_by_entropy
from .perplexity import perplexities, select_by_perplexity
from .replays import Unreplayable, replay_all, replay_specs, rewarded
from .turn_pass import Measure, measured_steps
from .value import ValueConfig, estimate_values, gains, select_by_value

StepScores = dict[str, list[float]]
_CHUNK = 8
_MICRO_TOKENS = 4096


def scores_path(run_dir: Path, selector: str) -> Path:
    """The file of a selector's numbers, one line per trajectory."""
    return RunLayout(run_dir).scores(selector)


def saved_scores(run_dir: Path, selector: str) -> StepScores:
    """The numbers of a selector that are there: T + 1 values, else T of them, by trajectory id."""
    return {row["id"]: row["scores"] for row in recover_jsonl(scores_path(run_dir, selector)) if "scores" in row}


def saved_rewards(run_dir: Path) -> StepScores:
    """The rewards that the environments gave as trajectories were replayed for their values, by trajectory id."""
    return {row["id"]: row["rewards"] for row in recover_jsonl(scores_path(run_dir, "value")) if "rewards" in row}


def step_scores(run_dir: Path, selector: str, trajectories: list[Trajectory]) -> StepScores | None:
    """How critical each step is by a selector, higher is more; None for one that only marks."""
    if selector not in ("value", *BY_BASE, "deviation", "distilled"):
        return None
    found = saved_scores(run_dir, selector)
    here = [t for t in trajectories if t.id in found]
    if selector != "value":
        return {t.id: found[t.id] for t in here}
    rewards = saved_rewards(run_dir)
    return {t.id: gains(rewarded(t, rewards.get(t.id)), found[t.id]) for t in here}


_ValueFound = tuple[StepScores, list[str], int, dict[str, str], StepScores, dict[str, Replies]]
"""Values, what went wrong on the way, steps spent; why trajectories were left out, rewards and replies, by id."""


def _value_job(task: tuple[list[Trajectory], ValueConfig, AgentSpec], state: WorkerState) -> Iterator[_ValueFound]:
    trajectories, config, spec = task
    begin = state.get_or_create(EpisodeStarter).begin
    replays, left_out = replay_all(trajectories, config.specs, begin)
    there = [t for t in trajectories if t.id in replays]
    replies: dict[str, Replies] = {}
    settings = replace(config, replays=replays, replies=replies)
    values, problems, steps = estimate_values(spec.agent(state), there, settings)
    left_out |= {t.id: "every roll-out from one of its states was lost" for t in there if t.id not in values}
    yield values, problems, steps, left_out, {name: list(replays[name].rewards) for name in values}, replies


def _value_rows(found: _ValueFound) -> list[dict[str, Any]]:
    values, _, _, _, rewards, replies = found
    said = {i: {"replies": replies[i].row()} if i in replies else {} for i in values}
    rows = [{"id": i, "scores": v, "rewards": rewards[i], **said[i]} for i, v in values.items()]
    # what became of the replies is kept of those without values too; a later line of one counts
    return rows + [{"id": i, "replies": r.row()} for i, r in replies.items() if i not in values]


def check_words(
    recipe: Recipe, log: RunLog, selector: str, model: str, trajectories: list[Trajectory], enough: int = 0
) -> None:
    """Refuse trajectories whose words the tokenizer of a selector's model does not know, or say which it does not.

    ``enough``: tokens below which nothing is refused.

    Raises:
        InputError: there are too many.
    """
    renderer = make_renderer(load_tokenizer(model), recipe.style, recipe.prompt)
    row = survey(renderer, trajectories).row()
    if row["tokens"] >= enough:
        refuse(row, recipe.unknown_share, model, f"Let a model that knows them read for {selector}")
    if why := warning(row, model):
        log.event("select", "unknown tokens", selector=selector, why=why)
        say(f"  {selector}: {why}")


def note_played(log: RunLog, losses: Losses, model: str, replies: Replies, problems: Sequence[str]) -> None:
    """Note what a model's episodes came to: what went wrong as events of the run, and the answers that are none.

    Raises:
        AtlasError: there are too many of these.
    """
    for problem in problems:
        log.event("select", "dropped", why=problem)
    losses.note(model, replies, next((p for p in reversed(problems) if UNANSWERED in p), None))
    losses.check(early=True)


def by_value(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    """Roll-outs from every state on Ray actors, then the steps where the value jumps.

    Raises:
        InputError: none of the trajectories can be replayed; names their file.
        AtlasError: none has values, as their environment died; or too many of the model's answers are none. Says why.
    """
    config, log = recipe.select, RunLog(run_dir)
    assert config is not None
    file, values = ResultFile(scores_path(run_dir, "value")), saved_scores(run_dir, "value")
    rewards = saved_rewards(run_dir)
    specs, unplayable = replay_specs(recipe, trajectories)
    left_out = {t.id: unplayable[t.env] for t in trajectories if t.env in unplayable and t.id not in values}
    todo = [t for t in trajectories if t.id not in values and t.id not in left_out]
    settings = ValueConfig(config.rollouts, config.horizon, specs)
    spec, spent = agent_spec(recipe, config.model, config.temperature), 0
    written = {row["id"]: Replies(row.get("replies", {})) for row in file.rows() if "scores" in row}
    losses = Losses(recipe.max_lost_answers)
    losses.note(config.model, summed(written.values()))
    if todo:
        check_words(recipe, log, "value", config.model, todo, Reader.enough)
        with (
            replies_told(log, "select", lambda: summed(written.values()), selector="value"),
            track("values by roll-out", len(trajectories) - len(left_out), len(values)) as progress,
            model_workers(recipe, spec, log_lost_workers(log, "select")) as (pool, leased),
        ):
            tasks = [(chunk, settings, leased) for chunk in chunks(todo, _CHUNK)]
            played = file.stream(pool, _value_job, tasks, lambda _, found: _value_rows(found))
            for task, (found, problems, steps, missing, given, replies) in played:
                written |= replies
                note_played(log, losses, config.model, summed(replies.values()), problems)
                values.update(found)
                rewards.update(given)
                left_out |= missing
                spent += steps
                words = summed(written.values()).words()
                progress.advance(len(task[0]), f"{spent} steps{words and f' · replies: {words}'}")
            losses.check()
    say_left_out(recipe, run_dir, "value", left_out, len(trajectories))
    annotated = [rewarded(t, rewards.get(t.id)) for t in trajectories if t.id in values]
    flat = sum(max(gains(t, values[t.id])) <= config.threshold for t in annotated)
    if flat:
        log.event("select", "no gain", selector="value", trajectories=flat)
        say(f"  value: in {flat} of {len(annotated)} trajectories no step raised the value; the best one was taken")
    formula = sum(len(t.steps) * (len(t.steps) + 1) // 2 for t in todo) * config.rollouts
    if todo:
        say(f"  value: {spent:,} environment steps; roll-outs to the expert's length would be {formula:,}")
    log.metric(
        "select", selector="value", rollout_steps=spent, full_steps=formula, trajectories=len(annotated), flat=flat
    )
    return [select_by_value(t, values[t.id], config.fraction, config.model, config.threshold) for t in annotated]


@dataclass
class _Scorer:
    """A worker's model, and what renders for it."""

    loaded: tuple[Any, Renderer] | None = None


_MEASURES: dict[str, Measure] = {"perplexity": perplexities, "entropy": entropies}
_MARK = {"perplexity": select_by_perplexity, "entropy": select_by_entropy}


def _measure_job(
    task: tuple[list[Trajectory], tuple[str, ...], str, Style, Prompt, tuple[int | None, str]], state: WorkerState
) -> Iterator[tuple[dict[str, StepScores], list[str]]]:
    trajectories, names, model_name, style, prompt, context = task
    scorer = state.get_or_create(_Scorer)
    if scorer.loaded is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(model_name).to(device).eval()
        scorer.loaded = model, make_renderer(load_tokenizer(model_name), style, prompt)
    measures = {name: _MEASURES[name] for name in names}
    yield measured_steps(*scorer.loaded, trajectories, measures, _MICRO_TOKENS, *context)


def perplexity_model(recipe: Recipe) -> str:
    """The model that is to be tuned; where none is, the one that plays."""
    assert recipe.select is not None
    tuned = recipe.finetune
    return tuned.base if tuned and not tuned.scratch else recipe.select.model


def _context(recipe: Recipe) -> tuple[int | None, str]:
    """What the recipe says of the longest text of :func:`perplexity_model`, and where."""
    tuned = recipe.finetune
    if tuned and not tuned.scratch:
        return tuned.context, "finetune.context"
    return recipe.engine.context, "engine.context"


def by_base(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory], selector: str) -> list[Annotation]:
    """One pass over every trajectory, then the steps of the highest perplexity or entropy under the base model.

    Where the recipe names both, the pass is made once for both.
    """
    config, log, model = recipe.select, RunLog(run_dir), perplexity_model(recipe)
    assert config is not None
    used = {part for name in config.selectors for part in with_members(name)}
    names = tuple(name for name in BY_BASE if name in used or name == selector)
    found = {name: saved_scores(run_dir, name) for name in names}
    others = {name: ResultFile(scores_path(run_dir, name)) for name in names if name != selector}
    # chunks are the same in a run that goes on, because padding shows in the last digits
    parts = [part for part in chunks(trajectories, 4 * _CHUNK) if any(t.id not in found[selector] for t in part)]
    if parts:
        check_words(recipe, log, selector, model, trajectories)

    def new_rows(measured: StepScores, name: str) -> list[dict[str, Any]]:
        return [{"id": i, "scores": v} for i, v in measured.items() if i not in found[name]]

    one = scorer_request(recipe)
    asked = recipe.placement.resource_request("engines" if one.who == "engines" else "workers")
    with (
        track(selector, len(trajectories), len(found[selector])) as progress,
        ActorPool[Any, Any](
            one.count, on_retry=log_lost_workers(log, "select"), cpus=one.cpus, gpus=one.gpus, resources=asked
        ) as pool,
    ):
        tasks = [(part, names, model, recipe.style, recipe.prompt, _context(recipe)) for part in parts]
        file = ResultFile(scores_path(run_dir, selector))
        for task, (measured, problems) in file.stream(
            pool, _measure_job, tasks, lambda _, result: new_rows(result[0][selector], selector)
        ):
            for name, other in others.items():
                if rows := new_rows(measured[name], name):
                    append_jsonl(other.path, rows)
            for name in names:
                found[name].update(measured[name])
            for problem in problems:
                log.event("select", "dropped", why=problem)
            progress.advance(len(task[0]))
    annotated = [t for t in trajectories if t.id in found[selector]]
    _say_missing(selector, f"do not fit {model}", len(trajectories) - len(annotated))
    return [_MARK[selector](t, found[selector][t.id], config.fraction, model) for t in annotated]


def _say_missing(selector: str, why: str, count: int) -> None:
    if count:
        say(f"  {selector}: {count} trajectories {why} and stay unannotated (events.jsonl says which)")


def say_left_out(recipe: Recipe, run_dir: Path, selector: str, left_out: Mapping[str, str], trajectories: int) -> None:
    """Say and note why trajectories could not be replayed.

    Args:
        recipe: of the run.
        run_dir: of the run.
        selector: who is without them.
        left_out: the reasons, by trajectory id.
        trajectories: how many there are in all.

    Raises:
        InputError: there are no others, and none can ever be replayed as they are here; names their file.
        AtlasError: there are no others, and some were lost to their environment or to a model.
    """
    assert recipe.collect is not None
    for name, why in left_out.items():
        RunLog(run_dir).event("select", "left out", selector=selector, trajectory=name, why=why)
    if not left_out:
        return
    reasons = told(counted(left_out.values()))
    if len(left_out) == trajectories:
        none = f"{selector}: none of {trajectories} trajectories can be replayed: {reasons}"
        if all(isinstance(why, Unreplayable) for why in left_out.values()):
            raise InputError(none, recipe.collect.file or RunLayout(run_dir).expert)
        raise AtlasError(none)
    say(f"  {selector}: {len(left_out)} of {trajectories} trajectories could not be replayed, left out: {reasons}")
