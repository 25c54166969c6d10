"""Training one switch from logs: RLlib's offline data on Ray Data, with the learner and the updates of play.

RLlib's own pre-learner would turn each batch into episode objects and tensors in two more actors. Here Ray Data reads
the transitions, and samples are drawn as the replay buffer draws those of play: with any number of calls left, and half
of them calls where there is a budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from gymnasium import spaces
from pyarrow import parquet
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME

from .. import ray_private
from ..cluster.workers import ensure_ray
from ..recipe.loading import Switch
from ..rundir import logs
from .algorithm import action_costs, learned
from .env_runners import silence_rllib
from .features import BUDGET_ENTRY, EXTRA
from .learner import LoggedDQNLearner
from .module import DQNModule
from .policy import SwitchConfig, SwitchPolicy
from .replay_buffer import TransitionBuffer
from .train import WorkDirectory
from .transitions import DURATIONS, INDEX

_ROWS = 8_192
_UPDATES_AT_A_TIME = 100
_STATE = "logged_training"


class LoggedData(OfflineData):
    """RLlib's offline data, whose samples come from a :class:`TransitionBuffer` that Ray Data has filled."""

    def __init__(self, config: Any) -> None:
        # read here, and by no task: it might find neither the file on its node nor a CPU beside the workers
        table = parquet.read_table(config.input_[0])
        super().__init__(config.copy(copy_frozen=False).offline_data(input_=[table], input_read_method="from_blocks"))
        context = config.env_config
        parts = self.data.iter_batches(batch_size=_ROWS, batch_format="numpy")
        read = [{name: np.stack(list(column)) for name, column in part.items()} for part in parts]
        columns = {name: np.concatenate([part[name] for part in read]) for name in read[0]}
        order = np.argsort(columns.pop(INDEX))  # blocks come in any order
        columns = {name: column[order] for name, column in columns.items()}
        if context["budget"] == 0:
            columns["obs"][:, BUDGET_ENTRY] = columns["new_obs"][:, BUDGET_ENTRY] = 0.0
        run, gamma = context["run"], config.gamma
        if run > 1:
            # what a call costs goes by its steps, and cannot be left to the draw
            columns["rewards"] -= context["charge"][columns["actions"]] * columns.pop(DURATIONS)
        self.buffer = TransitionBuffer(
            len(order), context["width"], config.seed, context["budget"], run=run, gamma=gamma
        )
        self.buffer.fill(columns)
        self.buffer.charge = context["charge"] if run == 1 else None

    def sample(
        self,
        num_samples: int,
        return_iterator: bool = False,
        num_shards: int = 1,
        module_state: dict[str, Any] | None = None,
    ) -> MultiAgentBatch:
        """So many transitions."""
        return MultiAgentBatch({DEFAULT_MODULE_ID: self.buffer.sample(num_samples)}, env_steps=num_samples)


class LoggedDQN(DQN):
    """Double DQN on logs; an iteration is some updates, and no step."""

    updates = 0

    def training_step(self) -> None:
        """Draw and learn."""
        config = self.config
        left = int(config.env_config["updates"]) - self.updates
        due, size = min(_UPDATES_AT_A_TIME, left), config.train_batch_size
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.updates}
        batch = self.offline_data.sample(num_samples=due * size)
        self.learner_group.update(batch=batch, timesteps=steps, minibatch_size=size)
        self.updates += due

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state, how many updates were made, and where the draws are."""
        drawn = self.offline_data.buffer.get_state(transitions=False)
        return {**super().get_state(*args, **kwargs), _STATE: {"updates": self.updates, "rng": drawn["rng"]}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().set_state(state)
        if _STATE in state:
            self.updates = state[_STATE]["updates"]
            buffer = self.offline_data.buffer
            buffer.set_state({**buffer.get_state(transitions=False), "first": 0, "rng": state[_STATE]["rng"]})

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:
        """Go on from a state on disk. RLlib's own would go on to environment runners, of which there are none."""
        super(Algorithm, self).restore_from_path(path, *args, **kwargs)

    def policy_tensors(self) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
        """Of the network that follows the trained one slowly: the mean of its last hundred or so updates."""

        def tensors(learner: Any) -> dict[str, Any]:
            module = learner.module[DEFAULT_MODULE_ID].unwrapped()
            return {name: tensor.detach().numpy().copy() for name, tensor in module.target.state_dict().items()}

        (found,) = [answer.get() for answer in self.learner_group.foreach_learner(tensors)]
        return dict(found)


def train_from_logs(
    directory: str | Path,
    settings: Switch,
    config: SwitchConfig,
    data: str | Path,
    seed: int = 0,
    on_progress: Callable[[dict[str, Any]], None] = lambda row: None,
) -> SwitchPolicy:
    """Train a switch with RLlib inside this process, from logged transitions, without playing.

    ``settings.steps * settings.updates_per_step`` updates are made, as at play, and the last policy is kept: no noisy
    estimate chooses among several, so that what is kept looks no better than it is. A killed training goes on from the
    last ``settings.evaluate_every`` steps, as at play.

    Args:
        directory: where the policy goes.
        settings: hyper-parameters.
        config: shape of the switch, its cost or budget.
        data: the file of :func:`atlas_ray.switching.transitions.write_transitions`.
        seed: of weights and draws.
        on_progress: told ``step``, ``seconds`` so far and ``eta_seconds`` now and then.

    Returns:
        The policy.
    """
    work = WorkDirectory(Path(directory))
    if work.is_done():
        return work.policy()
    history = work.history()
    ensure_ray(1)
    silence_rllib()
    logs.capture_loggers(*ray_private.DATA_LOGGERS)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    algorithm: Any = _config(settings, config, Path(data), seed).build_algo()
    try:
        if history:
            work.restore(algorithm)
        begun, clock = (history[-1] if history else {"step": 0, "seconds": 0.0}), time.monotonic()
        total = algorithm.config.env_config["updates"]
        every = max(1, round(settings.evaluate_every * settings.updates_per_step))
        while algorithm.updates < total:
            target = min(total, algorithm.updates + every)
            while algorithm.updates < target:
                algorithm.train()
            step, passed = round(algorithm.updates / settings.updates_per_step), time.monotonic() - clock
            left = (settings.steps - step) * passed / max(1, step - begun["step"])
            seconds = round(begun["seconds"] + passed, 1)
            history.append({"step": step, "seconds": seconds, "eta_seconds": round(max(0.0, left), 1)})
            work.save(algorithm, SwitchPolicy(config, algorithm.policy_tensors()), True, history)
            on_progress(history[-1])
    finally:
        algorithm.stop()
    work.finish(history[-1])
    return work.policy()


def _config(settings: Switch, config: SwitchConfig, data: Path, seed: int) -> Any:
    """RLlib's configuration."""
    price = float(config.cost or 0) if config.budget is None else 0.0
    updates = max(1, int(settings.steps * settings.updates_per_step))
    charge, run = action_costs(settings, price), config.run_length
    steps = sum(settings.gamma**k for k in range(run))
    context = {
        "width": config.features + EXTRA,
        "budget": config.cap,
        "charge": charge,
        "least": -charge * np.array([1, *[steps] * (config.models - 1)], np.float32),
        "pessimism": settings.pessimism,
        "run": run,
        "updates": updates,
    }
    width = config.features + EXTRA
    read = (
        ray_private.learn_offline(DQNConfig(algo_class=LoggedDQN))
        .environment(
            observation_space=spaces.Box(-np.inf, np.inf, (width,), np.float32),
            action_space=spaces.Discrete(config.models),
            env_config=context,
        )
        .offline_data(input_=[str(data)], offline_data_class=LoggedData)
        .training(lr=[[0, settings.learning_rate], [updates, settings.learning_rate / 10]])
    )
    return learned(
        read,
        settings,
        learner=LoggedDQNLearner,
        module=DQNModule,
        budget=config.cap,
        run=run,
        epsilon=0.0,
        seed=seed,
    )
