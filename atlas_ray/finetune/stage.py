"""Stage 3: every arm and seed in one Ray Train worker group, as many side by side as there is room for."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..cluster import remote_rundir
from ..cluster.capacity import check_room, resources_of, wait_for_groups
from ..cluster.causes import culprit, described
from ..cluster.remote_rundir import LocalRunDir, open_run_dir
from ..cluster.workers import ensure_ray
from ..data.exchange import import_pairs
from ..data.pairs import read_pairs, write_pairs
from ..data.records import iter_trajectories, read_annotations
from ..errors import AtlasError, InputError
from ..models.loading import load_tokenizer
from ..recipe.loading import Arm, Finetune, Recipe
from ..rundir import logs
from ..rundir.files import RunLog, read_json
from ..rundir.following import polling
from ..rundir.layout import CHECKPOINT_RECORD, RunLayout
from ..rundir.progress import duration, say, track
from .arm_data import items
from .data import steps_of
from .inputs import prepare, refuse_other_base, unknown_warning
from .process_group import ProcessGroup, make_process_group, threads
from .run import checkpoint_dir, progress_file, train_arm
from .store import TokenStore

_Run = tuple[int, Arm, int]
"""Number, arm and seed of a model."""


def _runs(config: Finetune) -> list[tuple[Arm, int]]:
    return [(arm, seed) for seed in config.seeds for arm in config.arms]


def _missing(run_dir: Path, config: Finetune) -> list[_Run]:
    """The models that are not there yet."""
    found = enumerate(_runs(config))
    return [
        (n, arm, seed) for n, (arm, seed) in found if not RunLayout(run_dir).checkpoint_record(arm.name, seed).exists()
    ]


def _failure(run_dir: Path, number: int) -> Path:
    return RunLayout(run_dir).training_scratch / f"failed-{number}.json"


def _quiet() -> None:
    logs.capture_transformers()
    warnings.filterwarnings("ignore", category=FutureWarning)


def _worker(config: dict[str, Any]) -> None:
    """Run on every Ray Train worker: train the models of its process group, one after the other."""
    import ray.train
    import torch.distributed as dist

    logs.attach_process(config["logs"], f"trainer-{ray.train.get_context().get_world_rank()}")
    _quiet()
    # Ray Train begins in a directory of its own, and a recipe may name a base by a relative path
    with suppress(OSError):  # (other nodes may not have it)
        os.chdir(config["cwd"])
    recipe, run_dir = Recipe.model_validate(config["recipe"]), Path(config["run_dir"])
    assert recipe.finetune is not None
    torch.set_num_threads(config["threads"])
    group = make_process_group(recipe.finetune.workers)
    remote_rundir.set_run_dir_handle(config["home"])
    at = open_run_dir(run_dir)
    _check_disk(recipe, at, group)
    if at.away:
        with at.alone():
            at.fetch(str(RunLayout().trajectories_dir))
            at.fetch(str(RunLayout().annotations_dir))
            at.fetch(str(RunLayout().pairs_dir))
            prepare(recipe, at.root, group.device)
    for number, arm, seed in config["runs"][group.replica :: config["replicas"]]:
        if at.exists(str(RunLayout().checkpoint_record(Arm(**arm).name, seed))):
            continue
        try:
            with logs.log_exceptions(f"{Arm(**arm).name}, seed {seed}"):
                train_arm(recipe, run_dir, Arm(**arm), seed, group, number)
        except AtlasError as error:
            # not a fault that trying again would mend; the other models go on
            if group.rank == 0:
                at.write_json(str(_failure(Path(), number)), {"kind": type(error).__name__, "why": str(error)})
    if dist.is_initialized():
        dist.barrier()
    ray.train.report({"replicas": config["replicas"]})


def _check_disk(recipe: Recipe, at: LocalRunDir, group: ProcessGroup) -> None:
    """Refuse FSDP2 workers without a common disk: each writes its shard, and only one can bring the state home.

    Raises:
        InputError: they have no disk in common.
    """
    import ray
    import torch.distributed as dist

    if recipe.finetune is None or recipe.finetune.strategy == "ddp" or group.size == 1:
        return
    disks: list[str] = [""] * group.size
    mine = ray.get_runtime_context().get_node_id() if at.away else ""
    dist.all_gather_object(disks, mine, group=group.mesh.get_group())
    if len(set(disks)) > 1:
        raise InputError(
            "a model whose state is shared out over several nodes needs a run directory that they share: "
            "give --out a directory of all nodes, or take fewer finetune.workers",
            field="finetune.strategy",
        )


@contextmanager
def _shown(run_dir: Path, runs: list[_Run], steps_of_runs: list[int]) -> Iterator[None]:
    """Show the progress that the first worker of every group writes, while the block lasts.

    ``steps_of_runs`` has the optimiser steps of every model, of those too that are there.
    """
    steps = {number: 0 for number, _, _ in runs}
    before = sum(count for number, count in enumerate(steps_of_runs) if number not in steps)
    with track("optimiser steps", sum(steps_of_runs), before) as progress:

        def look() -> None:
            for number, arm, seed in runs:
                path = progress_file(run_dir, number)
                if RunLayout(run_dir).checkpoint_record(arm.name, seed).exists():
                    steps[number] = steps_of_runs[number]
                elif path.exists():
                    steps[number] = read_json(path)["step"]
            progress.advance(before + sum(steps.values()) - progress.done)

        with polling(look, 0.5):
            yield


def finetune(recipe: Recipe, run_dir: Path) -> list[Path]:
    """Train one model per arm and seed into ``checkpoints/ARM-sSEED/``; finished ones are kept.

    Raises:
        AtlasError: training failed; the message is the worker's.
    """
    config = recipe.finetune
    assert config is not None
    layout = RunLayout(run_dir)
    targets = [checkpoint_dir(run_dir, arm, seed) for arm, seed in _runs(config)]
    missing = _missing(run_dir, config)
    if not missing:
        return targets
    _check_inputs(recipe, layout)
    per_arm = {arm.name: _steps(run_dir, config.of_arm(arm), arm) for arm in config.arms}
    steps = " or ".join(map(str, dict.fromkeys(per_arm[arm.name] for _, arm, _ in missing)))
    say(f"  {len(missing)} of {len(targets)} models to train, {steps} optimiser steps each")
    scratch = layout.training_scratch
    for path in (*scratch.glob("progress-*.json"), *scratch.glob("failed-*.json")):
        path.unlink()
    start = time.monotonic()
    try:
        with _shown(run_dir, missing, [per_arm[arm.name] for arm, _ in _runs(config)]):
            (_fit if config.workers else _train_here)(recipe, run_dir, config, missing)
    except AtlasError as error:
        RunLog(run_dir).event("finetune", "failed", code=error.code, why=str(error))
        raise
    _sum_up(run_dir, [checkpoint_dir(run_dir, arm, seed) for _, arm, seed in missing], time.monotonic() - start)
    shutil.rmtree(scratch, ignore_errors=True)
    return targets


def _steps(run_dir: Path, config: Finetune, arm: Arm) -> int:
    return steps_of(items(run_dir, arm), config.batch_size, config.epochs)


def _check_inputs(recipe: Recipe, layout: RunLayout) -> None:
    """Raise here and now what would otherwise fail in every worker, and take over pairs of the user's own."""
    config = recipe.finetune
    assert config is not None
    if not config.scratch:
        refuse_other_base(recipe, layout.root)
        load_tokenizer(config.base)
    for name in dict.fromkeys(arm.selector for arm in config.arms if arm.pairs):
        _take_pairs(config, layout, name)
    for selector in dict.fromkeys(arm.selector for arm in config.arms if not arm.pairs):
        read_annotations(layout.annotations(selector), iter_trajectories(layout.expert))


def _take_pairs(config: Finetune, layout: RunLayout, name: str) -> None:
    """Read the pairs of an arm, or those of a file, which the run keeps.

    Raises:
        InputError: they cannot be read, or there are none.
    """
    path = layout.pairs(name)
    if name in config.pairs.files and not path.exists():
        write_pairs(path, import_pairs(config.pairs.files[name]))
    elif not path.exists():
        raise InputError(f"{name} has left no pairs, so there is nothing to train on", path, None, "finetune.arms")
    else:
        read_pairs(path)


def _train_here(recipe: Recipe, run_dir: Path, config: Finetune, missing: list[_Run]) -> None:
    """Train the missing models one after the other in this process."""
    _quiet()
    group = ProcessGroup(device=_device())
    _say_unknown(recipe, run_dir, prepare(recipe, run_dir, group.device))
    for number, arm, seed in missing:
        train_arm(recipe, run_dir, arm, seed, group, number)
    _free(group.device)  # engines on this GPU come back to it


def _free(device: torch.device) -> None:
    """Give back what torch keeps of a GPU's memory for this process."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _say_unknown(recipe: Recipe, run_dir: Path, stores: list[TokenStore]) -> None:
    for why in filter(None, (unknown_warning(recipe, store) for store in stores)):
        RunLog(run_dir).event("finetune", "unknown tokens", why=why)
        say(f"  {why}")


def _sum_up(run_dir: Path, made: list[Path], seconds: float) -> None:
    """Say what was trained, and say loudly what was left out."""
    log, about = RunLog(run_dir), {path.name: read_json(path / CHECKPOINT_RECORD) for path in made}
    for name, run in about.items():
        if run["lost_critical_steps"] or run["shortened"] or run["emptied"]:
            lost = {key: run[key] for key in ("shortened", "lost_critical_steps", "emptied")}
            log.event("finetune", "shortened", model=name, **lost)
            say(f"  {name}: {_left_out(run)}")
    speed = fmean(run["tokens_per_second"] for run in about.values())
    parts = [f"{speed:,.0f} tokens/s per model"]
    if all(run["flops_saved"] is not None for run in about.values()):
        parts.append(f"{fmean(run['peak_share'] for run in about.values()):.0%} of this machine's peak")
        parts.append(f"{fmean(run['flops_saved'] for run in about.values()):.0%} fewer FLOPs than plain masking")
    say(f"  trained in {duration(seconds)}: {', '.join(parts)}")


def _left_out(run: dict[str, Any]) -> str:
    long = f"{run['shortened']} of {run['trajectories']}"
    if "pairs" in run:
        return f"{long} pairs were too long and lost steps; {run['emptied']} lost their turn and were left out"
    return (
        f"{long} trajectories were too long and lost steps, {run['lost_critical_steps']} critical ones among them; "
        f"{run['emptied']} had none left"
    )


def _replicas(config: Finetune, runs: int, resources: dict[str, float]) -> int:
    """Models that are trained side by side."""
    if config.parallel != "auto":
        return min(config.parallel, runs)
    return max(1, min(runs, int(resources.get("GPU", 0) or resources.get("CPU", 1)) // config.workers))


def _fit(recipe: Recipe, run_dir: Path, config: Finetune, missing: list[_Run]) -> None:
    """Train the missing models by Ray Train."""
    ensure_ray(config.workers * (1 if config.parallel == "auto" else config.parallel))
    logs.capture_loggers("ray.train")
    wait_for_groups(recipe.placement.resource_request("trainers"))  # what they are given depends on what there is
    there = resources_of(recipe.placement.trainers)
    gpu = there.get("GPU", 0) > 0
    if os.environ.get("RAY_ADDRESS") and not gpu:
        say("  no node of this cluster that may train has a GPU: models are trained on CPUs")
    replicas = _replicas(config, len(missing), there)
    workers = replicas * config.workers
    check_room(workers, workers if gpu else 0, "the models that are trained ask for", ("finetune.workers",) * 2)
    device = _device()
    _say_unknown(recipe, run_dir, prepare(recipe, run_dir, device))
    _free(device)  # a trainer on this GPU needs what the base took here
    try:
        with _own_interrupt():
            _trainer(recipe, run_dir, missing, replicas, workers, gpu).fit()
    except Exception as error:
        cause = culprit(error)
        if isinstance(cause, AtlasError):
            raise cause from error
        raise AtlasError(f"fine-tuning failed: {described(cause)}") from error
    _raise_failures(run_dir, config, missing)


def _trainer(recipe: Recipe, run_dir: Path, missing: list[_Run], replicas: int, workers: int, gpu: bool) -> Any:
    """Ray Train's trainer of ``workers`` processes, which form ``replicas`` process groups."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    asked = recipe.placement.resource_request("trainers")
    return TorchTrainer(
        _worker,
        train_loop_config={
            "recipe": recipe.model_dump(mode="json"),
            "run_dir": str(run_dir.resolve()),
            "runs": [(number, arm.model_dump(), seed) for number, arm, seed in missing],
            "replicas": replicas,
            "threads": threads(workers),
            "logs": logs.folder(),
            "home": remote_rundir.run_dir_handle(),
            "cwd": str(Path.cwd()),
        },
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker={"CPU": 1, **asked}),
        run_config=RunConfig(
            name="finetune",
            storage_path=str((run_dir / ".ray").resolve()),
            failure_config=FailureConfig(max_failures=3),
        ),
    )


def _raise_failures(run_dir: Path, config: Finetune, missing: list[_Run]) -> None:
    """Raise what the workers noted of models that could not be trained.

    Raises:
        InputError: the input of every one of them is at fault.
        AtlasError: training failed, or there is no checkpoint.
    """
    noted = {number: _failure(run_dir, number) for number, _, _ in missing}
    failed = {number: read_json(path) for number, path in noted.items() if path.exists()}
    if failed:
        names = {number: checkpoint_dir(run_dir, arm, seed).name for number, arm, seed in missing}
        kind = InputError if all(about["kind"] == InputError.__name__ for about in failed.values()) else AtlasError
        whose: dict[str, list[str]] = {}  # most of the time all fail for one reason
        for number, about in failed.items():
            whose.setdefault(about["why"], []).append(names[number])
        raise kind("; ".join(f"{', '.join(models)}: {why}" for why, models in whose.items()))
    if left := [checkpoint_dir(run_dir, arm, seed).name for _, arm, seed in _missing(run_dir, config)]:
        raise AtlasError(
            f"{', '.join(left)}: trained, but there is no checkpoint in {run_dir / 'checkpoints'}. Is the run "
            "directory on storage that all nodes share?"
        )


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Ray Train takes the interrupt for itself and keeps it: after a training it would end the process with 0."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
