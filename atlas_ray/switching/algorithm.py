"""RLlib's DQN and SAC for a switch: RLlib's runners and learners, our modules, updates and replay buffer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

from .. import ray_private
from ..recipe.loading import Switch
from ..rundir import logs
from .boundary import Transitions
from .env_runners import (
    EnvCreator,
    SwitchRunner,
    raise_init_error,
    register_environment,
    sample_env_runners,
    silence_rllib,
)
from .features import EXTRA
from .learner import SwitchDQNLearner, SwitchSACLearner
from .module import DQNModule, SACModule
from .policy import SwitchConfig
from .replay_buffer import TransitionBuffer

HIDDEN = (128, 64)
CAPACITY = 50_000
TARGET_TAU = 0.01
BUFFER = "transition_buffer"
_NEVER = 10**15


class _OffPolicy:
    """An iteration is: a few vector steps into a :class:`TransitionBuffer`, then all updates that are due."""

    def setup(self, config: Any) -> None:
        """Build what RLlib builds, and the buffer."""
        algorithm: Any = self
        try:
            super().setup(config)  # type: ignore[misc]
        except Exception as error:
            # RLlib only logs that a runner could not be made, and stumbles over it while the group is not ours yet
            if (group := ray_private.group_behind(error)) is not None:
                raise_init_error(group)
            raise
        context, seed = algorithm.config.env_config, algorithm.config.seed
        algorithm.buffer = TransitionBuffer(
            CAPACITY,
            context["width"],
            seed,
            context["budget"],
            context.get("unit", "calls") == "calls",
            context.get("run", 1),
            algorithm.config.gamma,
        )
        algorithm._pending_updates = 0.0

    @property
    def steps(self) -> int:
        """Environment steps sampled so far, those without an answer too."""
        buffer: TransitionBuffer = self.buffer  # type: ignore[attr-defined]
        return buffer.count + buffer.merged + buffer.dropped

    def warm_start(self, played: Sequence[Transitions]) -> None:
        """Fill the buffer with episodes of one model each; updates for their steps are due."""
        algorithm: Any = self
        for episode in played:
            count = len(episode.rewards)
            algorithm.buffer.add_arrays(
                episode.observations, np.full(count, episode.model), episode.rewards, episode.terminated
            )
            algorithm._pending_updates += count * algorithm.config.env_config["updates_per_step"]

    def training_step(self) -> None:
        """Sample, store, update."""
        algorithm: Any = self
        config, buffer = algorithm.config, algorithm.buffer
        episodes, results = sample_env_runners(algorithm.env_runner_group)
        algorithm.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        before = buffer.count + buffer.merged
        buffer.add(episodes)
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: algorithm.steps}
        if len(buffer) >= config.num_steps_sampled_before_learning_starts:
            due = (buffer.count + buffer.merged - before) * config.env_config["updates_per_step"]
            algorithm._pending_updates += due
            # those of a warm start are spread out: their batches are made at once
            updates = min(int(algorithm._pending_updates), int(4 * due) + 1)
            algorithm._pending_updates -= updates
            if updates:
                size = config.train_batch_size
                batch = MultiAgentBatch({DEFAULT_MODULE_ID: buffer.sample(updates * size)}, env_steps=updates * size)
                algorithm.learner_group.update(batch=batch, timesteps=steps, minibatch_size=size)
        algorithm.env_runner_group.sync_weights(
            from_worker_or_learner_group=algorithm.learner_group, inference_only=True
        )

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the buffer's."""
        state = super().get_state(*args, **kwargs)  # type: ignore[misc]
        algorithm: Any = self
        return {**state, BUFFER: algorithm.buffer.get_state(algorithm.config.env_config["keep_replay"])}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().set_state(state)  # type: ignore[misc]
        if BUFFER in state:
            self.buffer.set_state(state[BUFFER])  # type: ignore[attr-defined]

    def num_restarted_env_runners(self) -> int:
        """How many environment runners were lost and started again so far."""
        algorithm: Any = self
        return int(algorithm.env_runner_group.num_remote_worker_restarts())


class SwitchDQN(_OffPolicy, DQN):
    """Double DQN."""


class SwitchSAC(_OffPolicy, SAC):
    """Discrete SAC."""


def build_algorithm(
    name: str,
    make_env: EnvCreator,
    settings: Switch,
    config: SwitchConfig,
    seed: int,
    first_episode: int,
    resources: dict[str, float] | None = None,
) -> SwitchDQN | SwitchSAC:
    """An algorithm by :func:`algorithm_config`."""
    return algorithm_config(name, make_env, settings, config, seed, first_episode, resources).build_algo()


def algorithm_config(
    name: str,
    make_env: EnvCreator,
    settings: Switch,
    config: SwitchConfig,
    seed: int,
    first_episode: int,
    resources: dict[str, float] | None = None,
) -> Any:
    """RLlib's configuration of an algorithm that learns in this process.

    It samples in this process too, or in ``settings.env_runners`` others.

    Args:
        name: of the environment, not used by another in this Ray session.
        make_env: makes it; has to be picklable for environment runners.
        settings: the hyper-parameters.
        config: what is learned.
        seed: of weights, exploration and replay.
        first_episode: seed of the first episode.
        resources: custom ones that each environment runner asks for.
    """
    silence_rllib()
    known_as = register_environment(name, make_env, remote=settings.env_runners > 0)
    sac = settings.algorithm == "sac"
    rllib_config = _sac_config(settings) if sac else _dqn_config(settings)
    played = (
        rllib_config.environment(known_as, env_config=_env_config(name, settings, config, first_episode))
        .env_runners(
            env_runner_cls=SwitchRunner,
            num_env_runners=settings.env_runners,
            gym_env_vectorize_mode="vector_entry_point",
            num_envs_per_env_runner=settings.num_envs,
            custom_resources_per_env_runner=resources or {},
            rollout_fragment_length=4,
        )
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
        .training(num_steps_sampled_before_learning_starts=min(500, settings.steps // 10))
    )
    return learned(
        played,
        settings,
        learner=SwitchSACLearner if sac else SwitchDQNLearner,
        module=SACModule if sac else DQNModule,
        budget=config.cap,
        run=config.run_length,
        epsilon=[[0, 1.0], [settings.steps // 2, 0.5]],
        seed=seed,
    )


def learned(
    played: Any,
    settings: Switch,
    *,
    learner: type,
    module: type,
    budget: float | None,
    epsilon: Any,
    seed: int,
    run: int = 1,
) -> Any:
    """RLlib's configuration of how a switch learns, whether it plays or reads logs.

    Args:
        played: RLlib's configuration of where steps come from.
        settings: the hyper-parameters.
        learner: class of the learner.
        module: class of the network.
        budget: as the network sees it; None without one.
        epsilon: share of random choices, or its schedule.
        seed: of weights, exploration and replay.
        run: steps of a call.
    """
    return (
        played.learners(num_learners=0, learner_class=learner)
        .training(
            gamma=settings.gamma,
            train_batch_size=settings.batch_size,
            target_network_update_freq=_NEVER,  # the learner moves them after every update
            tau=TARGET_TAU,
            grad_clip=10.0,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True},
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=module, model_config={"hidden": HIDDEN, "budget": budget, "run": run, "epsilon": epsilon}
            )
        )
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
        .debugging(seed=seed, log_level="ERROR")
    )


def _env_config(name: str, settings: Switch, config: SwitchConfig, first_episode: int) -> dict[str, Any]:
    """What environment runners and the algorithm are told besides; RLlib pickles it into training states."""
    return {
        "name": name,
        "first_episode": first_episode,
        "width": config.features + EXTRA,
        "budget": config.cap,
        "unit": config.unit,
        "run": config.run_length,
        "updates_per_step": settings.updates_per_step,
        "keep_replay": settings.keep_replay_buffer,
        "logs": logs.folder(),
        "log_name": f"runner-{Path(name).name}",
    }


def _dqn_config(settings: Switch) -> Any:
    return DQNConfig(algo_class=SwitchDQN).training(lr=_learning_rate(settings))


def _sac_config(settings: Switch) -> Any:
    rate = _learning_rate(settings)
    return SACConfig(algo_class=SwitchSAC).training(
        actor_lr=rate,
        critic_lr=rate,
        alpha_lr=rate,
        initial_alpha=0.05,
        target_entropy=0.02 * math.log(2),  # "auto" is -1 for Discrete actions, which no policy reaches
    )


def _learning_rate(settings: Switch) -> list[list[float]]:
    """RLlib's schedule: falls to a tenth over the steps."""
    return [[0, settings.learning_rate], [settings.steps, settings.learning_rate / 10]]


def action_costs(settings: Switch, price: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[models]``: what a step of each costs at a price per call."""
    return np.array(settings.weights, np.float32) * np.float32(price)
