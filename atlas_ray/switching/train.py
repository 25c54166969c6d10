"""Training one switch, so that a killed run goes on and the best policy is kept, not the last."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import files
from ..recipe import Switch
from ..workers import ensure_ray
from .environment import SwitchingVectorEnv
from .policy import CONFIG, SwitchConfig, SwitchPolicy

STATE, HISTORY, BEST = "state", "history.json", "best"


def train_switch(
    directory: str | Path,
    settings: Switch,
    make_env: Callable[[int], SwitchingVectorEnv],
    evaluate: Callable[[SwitchPolicy], dict[str, float]],
    first_seed: int,
    features: int,
    budget: int | None = None,
    cost: float = 0.0,
    on_evaluation: Callable[[dict[str, Any]], None] = lambda row: None,
) -> SwitchPolicy:
    """Train a switch with RLlib's DQN inside this process.

    DQN's policy gets better and worse again, so it is evaluated greedily every ``settings.evaluate_every`` environment
    steps and the best one by ``objective`` is what ends up in ``directory``. After every evaluation the state of the
    training is in ``DIRECTORY.train`` beside it, from where a later call goes on; that is removed at the end.

    Args:
        directory: where the policy goes.
        settings: hyper-parameters.
        make_env: the environment whose first episode has the seed given.
        evaluate: scores a policy, always on the same episodes; the score is ``objective``.
        first_seed: seed of the first training episode, and of everything that is drawn.
        features: width of the encoded state.
        budget: LONDI-B's budget, None for none.
        cost: LONDI's cost of a call.
        on_evaluation: told a row of numbers after each evaluation: ``step``, ``objective``, ``best``, what ``evaluate``
            returned, ``seconds`` so far and ``eta_seconds``.

    Returns:
        The best policy.
    """
    directory = Path(directory)
    work = directory.parent / f"{directory.name}.train"
    if (directory / CONFIG).is_file():
        shutil.rmtree(work, ignore_errors=True)
        return SwitchPolicy.load(directory)
    saved = work / STATE
    history: list[dict[str, Any]] = files.read_json(saved / HISTORY) if saved.is_dir() else []
    start: dict[str, Any] = history[-1] if history else {"step": 0, "seconds": 0.0, "next_seed": first_seed}

    ensure_ray(1)
    from .algorithm import HIDDEN, build

    env = make_env(start["next_seed"])
    algorithm = build(str(work), lambda: env, settings, budget is not None, start["next_seed"])
    config = SwitchConfig(features, HIDDEN, budget=budget, cost=cost)
    try:
        if history:
            algorithm.restore_from_path(str(saved.resolve()))
        clock = time.monotonic()
        while algorithm.steps < settings.steps:
            target = min(settings.steps, algorithm.steps + settings.evaluate_every)
            while algorithm.steps < target:
                algorithm.train()
            policy = SwitchPolicy(config, {k: v.numpy() for k, v in algorithm.get_module().net.state_dict().items()})
            scores = evaluate(policy)
            best = max([scores["objective"], *(row["objective"] for row in history)])
            passed = time.monotonic() - clock
            pace = passed / (algorithm.steps - start["step"])
            history.append(
                {
                    "step": algorithm.steps,
                    **scores,
                    "best": best,
                    "seconds": round(start["seconds"] + passed, 1),
                    "eta_seconds": round(max(0, settings.steps - algorithm.steps) * pace, 1),
                    "next_seed": env.next_seed,
                }
            )
            if scores["objective"] == best:
                policy.save(work / BEST)
            with files.atomic_directory(saved) as temporary:
                algorithm.save_to_path(str(temporary.resolve()))
                files.write_json(temporary / HISTORY, history)
            on_evaluation(history[-1])
    finally:
        algorithm.stop()
    SwitchPolicy.load(work / BEST).save(directory)
    shutil.rmtree(work)
    return SwitchPolicy.load(directory)
