"""The selector ``distilled`` on Ray actors: read the teacher's episodes, fit a head, read and mark this run's own."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from ..agents.rendering import Renderer
from ..agents.rendering_chat import make_renderer
from ..cluster.resources import scorer_request
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.worker_state import WorkerState
from ..cluster.workers import ActorPool, chunks
from ..data.marked_run import MarkedRun, read_marked_run
from ..data.records import Annotation, Trajectory
from ..errors import AtlasError
from ..models.encoders import Encoder, make_encoder
from ..models.loading import context_of, load_model, load_tokenizer
from ..recipe.loading import Recipe
from ..recipe.select import TEXT_ENCODERS, with_members
from ..rundir.files import RunLog, jsonl_rows, read_json, replacing
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from .distilled import (
    FIELD,
    Distilled,
    Distiller,
    Features,
    groups_of,
    model_features,
    select_by_probability,
    text_features,
)
from .head import Head
from .scored_stage import check_words, saved_scores
from .turn_pass import turn_passes

_CHUNK = 32
_MICRO_TOKENS = 4096
_HASHED_WIDTH = 512
_ENCODER = "select.distilled.encoder"
_COSTS = ("seconds", "rollout_steps", "replayed_steps", "requests", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True)
class _Task:
    """Trajectories to read; the rest is the same for all."""

    trajectories: tuple[Trajectory, ...]
    encoder: str
    style: Any
    prompt: Any
    context: int | None

    @property
    def key(self) -> str:
        """The same for the same trajectories, read alike."""
        told = [self.encoder, self.style, self.prompt, *(t.row() for t in self.trajectories)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class _Read:
    """Features of trajectories, why others have none, and what reading took."""

    features: Features
    problems: list[str]
    seconds: float = 0.0
    tokens: int = 0
    parameters: int = 0


@dataclass
class _Reader:
    """What a worker reads with."""

    model: Any = None
    renderer: Renderer | None = None
    encoder: Encoder | None = None


def _read(task: _Task, state: WorkerState) -> Iterator[_Read]:
    reader = state.get_or_create(_Reader)
    if task.encoder in TEXT_ENCODERS:
        if reader.encoder is None:
            reader.encoder = make_encoder(task.encoder, _HASHED_WIDTH, _ENCODER)
        begun = time.perf_counter()
        made = {t.id: text_features(reader.encoder, t) for t in task.trajectories}
        yield _Read(made, [], time.perf_counter() - begun)
        return
    if reader.renderer is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        reader.model = load_model(task.encoder).to(device).eval()
        reader.renderer = make_renderer(load_tokenizer(task.encoder), task.style, task.prompt)
    begun = time.perf_counter()
    context = context_of(reader.model, task.context, "engine.context")
    passes, problems = turn_passes(reader.model, reader.renderer, task.trajectories, _MICRO_TOKENS, context)
    made = {name: model_features(turns) for name, turns in passes}
    for name in [name for name, features in made.items() if not np.isfinite(features).all()]:
        del made[name]
        problems.append(f"{name}: the model gives it numbers that are not finite")
    seconds = time.perf_counter() - begun
    tokens = sum(len(reader.renderer.render(t).ids) for t in task.trajectories if t.id in made)
    yield _Read(made, problems, seconds, tokens, sum(p.numel() for p in reader.model.parameters()))


class _Stage:
    """What both passes share: the recipe, the log, and what reading took so far."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        assert recipe.select is not None
        self.recipe, self.layout, self.log = recipe, RunLayout(run_dir), RunLog(run_dir)
        self.config, self.fraction = recipe.select.distilled, recipe.select.fraction
        self.cost: dict[str, float] = {"read": 0, "read_seconds": 0.0, "tokens": 0, "flops": 0}

    def tasks(self, trajectories: Sequence[Trajectory]) -> list[_Task]:
        """Chunks are the same in a run that goes on, because padding shows in the last digits."""
        recipe = self.recipe
        same = (self.config.encoder, recipe.style, recipe.prompt, recipe.engine.context)
        return [_Task(tuple(part), *same) for part in chunks(list(trajectories), _CHUNK)]

    def read(
        self, title: str, tasks: Sequence[_Task], total: int, rows: Callable[[_Task, _Read], list[dict[str, Any]]]
    ) -> None:
        """Read the tasks; the rows that are made from each go into the file of scores."""
        left = [t for task in tasks for t in task.trajectories]
        if not left:
            return
        if self.config.encoder not in TEXT_ENCODERS:
            check_words(self.recipe, self.log, "distilled", self.config.encoder, left)
        one = scorer_request(self.recipe)
        asked = self.recipe.placement.resource_request("engines" if one.who == "engines" else "workers")
        file = ResultFile(self.layout.scores("distilled"))
        with (
            track(title, total, total - len(left)) as progress,
            ActorPool[Any, Any](
                one.count, on_retry=log_lost_workers(self.log, "select"), cpus=one.cpus, gpus=one.gpus, resources=asked
            ) as pool,
        ):
            for task, read in file.stream(pool, _read, tasks, rows):
                self.cost["read"] += len(read.features)
                self.cost["read_seconds"] += read.seconds
                self.cost["tokens"] += read.tokens
                self.cost["flops"] += 2 * read.parameters * read.tokens
                for why in read.problems:
                    self.log.event("select", "dropped", why=f"{why}, so it cannot be read")
                progress.advance(len(task.trajectories))

    def told(self, what: str) -> None:
        """Write down what a pass took."""
        if self.cost["read"]:
            self.log.metric("select", selector="distilled", of=what, **self.cost)
        self.cost = dict.fromkeys(self.cost, 0)


def _fit(stage: _Stage, teacher: MarkedRun) -> None:
    """Read the teacher's episodes, fit the head and write it down. What was read is kept on disk until then."""
    features: dict[str, Any] = {}
    tasks = []
    for task in stage.tasks(teacher.trajectories):
        if (path := stage.layout.encoded(task.key)).is_file():
            kept = load_file(path)
            features |= {t.id: kept[str(n)] for n, t in enumerate(task.trajectories) if str(n) in kept}
        else:
            tasks.append(task)

    def keep(task: _Task, read: _Read) -> list[dict[str, Any]]:
        features.update(read.features)
        numbered = {str(n): read.features[t.id] for n, t in enumerate(task.trajectories) if t.id in read.features}
        path = stage.layout.encoded(task.key)
        with replacing(path) as temporary:
            save_file(numbered, temporary)
        return []

    stage.read("episodes of the teacher", tasks, len(teacher.trajectories), keep)
    stage.told("teacher")
    if not features:
        raise AtlasError(f"distilled: none of the {len(teacher.trajectories)} episodes of the teacher can be read")
    width = next(iter(features.values())).shape[1]
    groups = groups_of(width, stage.config.encoder not in TEXT_ENCODERS)
    made = Distiller(teacher, features, groups, stage.fraction).distil()
    made.head.save(stage.layout.head_tensors, stage.layout.head, _about(stage, teacher, made))
    shutil.rmtree(stage.layout.encoded("").parent, ignore_errors=True)
    for told, where in ((made.held_out, "other trajectories"), (made.left_out, "environments that were left out")):
        if told:
            say(f"  distilled: on {where} of the teacher's run AUC {told['auc']:.2f}, kappa {told['kappa'] or 0.0:.2f}")


def _about(stage: _Stage, teacher: MarkedRun, made: Distilled) -> dict[str, Any]:
    """What stands beside the head: where it is from, when it marks, how good it is."""
    steps = sum(len(t.steps) for t in teacher.trajectories)
    rows = jsonl_rows(RunLayout(teacher.run_dir).metrics)
    of_teacher = [r for r in rows if r.get("stage") == "select" and r.get("selector") in with_members(teacher.selector)]
    spent = {name: sum(row.get(name, 0) for row in of_teacher) for name in _COSTS}
    return {
        "encoder": stage.config.encoder,
        "fraction": stage.fraction,
        "threshold": made.threshold,
        "teacher": {
            "given": stage.config.teacher,
            "selector": teacher.selector,
            "trajectories": len(teacher.trajectories),
            "share": sum(len(mark.critical) for mark in teacher.marks.values()) / steps,
            "levels": sorted({t.env for t in teacher.trajectories}),
            "cost": {name: amount for name, amount in spent.items() if amount},
        },
        "held_out": made.held_out,
        "left_out": made.left_out,
    }


def by_distilled(recipe: Recipe, run_dir: Path, trajectories: list[Trajectory]) -> list[Annotation]:
    """Marks of a head that learnt from the marks of another run; a head that is there is not fitted again.

    Raises:
        AtlasError: none of the trajectories can be read.
        InputError: the teacher's run cannot be read or has too few marks; or a tokenizer knows too little of the words.
    """
    stage = _Stage(recipe, run_dir)
    if not stage.layout.head.is_file():
        teacher = read_marked_run(stage.config.teacher or "", FIELD)
        theirs = {t.id: t.steps for t in teacher.trajectories}
        if same := sum(theirs.get(t.id) == t.steps for t in trajectories):
            stage.log.event("select", "the teacher's own", selector="distilled", trajectories=same)
            say(f"  distilled: {same} of {len(trajectories)} trajectories are the teacher's: it was fitted to them")
        _fit(stage, teacher)
    head = Head.load(stage.layout.head_tensors, stage.layout.head)
    threshold = read_json(stage.layout.head)["threshold"]
    found = saved_scores(run_dir, "distilled")
    tasks = [task for task in stage.tasks(trajectories) if any(t.id not in found for t in task.trajectories)]

    def score(_: _Task, read: _Read) -> list[dict[str, Any]]:
        new = {i: head.probabilities(f).tolist() for i, f in read.features.items() if i not in found}
        found.update(new)
        return [{"id": i, "scores": each} for i, each in new.items()]

    stage.read("predictions", tasks, len(trajectories), score)
    stage.told("own")
    annotated = [t for t in trajectories if t.id in found]
    if left := len(trajectories) - len(annotated):
        say(f"  distilled: {left} trajectories cannot be read by {stage.config.encoder} and stay unannotated")
    if not annotated:
        raise AtlasError(f"distilled: none of {len(trajectories)} trajectories can be read by {stage.config.encoder}")
    model = f"{stage.config.encoder} after {stage.config.teacher}"
    made = [select_by_probability(t, found[t.id], stage.fraction, threshold) for t in annotated]
    return [a.model_copy(update={"model": model}) for a in made]
