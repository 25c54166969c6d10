"""RLlib's DQN for a switch: its environment runner, learner and loss, our module, our replay buffer."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_env

from ..recipe import Switch
from .environment import SwitchingVectorEnv
from .module import SwitchModule
from .replay import TransitionBuffer

HIDDEN = (128, 64)
CAPACITY = 50_000
TARGET_TAU = 0.01
BUFFER = "transition_buffer"
NAME = "atlas-ray-switch"

# Environments by key. RLlib pickles its configuration into checkpoints, so this must not hold the models themselves.
_environments: dict[str, Callable[[], SwitchingVectorEnv]] = {}


def _environment(context: dict[str, Any]) -> SwitchingVectorEnv:
    return _environments[context["key"]]()


class SwitchDQN(DQN):
    """DQN whose iteration is: a few vector steps into a :class:`TransitionBuffer`, then updates drawn from it."""

    def setup(self, config: Any) -> None:
        """Build what RLlib builds, and the buffer."""
        super().setup(config)
        width = self.env_runner.env.single_observation_space.shape[0]
        self.buffer = TransitionBuffer(CAPACITY, width, self.config.seed)
        self._due = 0.0

    @property
    def steps(self) -> int:
        """Environment steps sampled so far."""
        return self.buffer.count

    def training_step(self) -> None:
        """Sample, store, update."""
        episodes, results = synchronous_parallel_sample(
            worker_set=self.env_runner_group, concat=True, _uses_new_env_runners=True, _return_metrics=True
        )
        self.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        before = self.buffer.count
        self.buffer.add(episodes)
        if self.buffer.count < self.config.num_steps_sampled_before_learning_starts:
            return
        self._due += (self.buffer.count - before) * self.config.env_config["updates_per_step"]
        while self._due >= 1:
            self._due -= 1
            batch = self.buffer.sample(self.config.train_batch_size)
            self.learner_group.update(
                batch=MultiAgentBatch({DEFAULT_MODULE_ID: batch}, env_steps=len(batch)),
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: self.buffer.count},
            )
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the buffer's."""
        return {**super().get_state(*args, **kwargs), BUFFER: self.buffer.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        super().set_state(state)
        if BUFFER in state:
            self.buffer.set_state(state[BUFFER])


def build(
    key: str, make_env: Callable[[], SwitchingVectorEnv], settings: Switch, budgeted: bool, seed: int
) -> SwitchDQN:
    """A :class:`SwitchDQN` that samples, learns and acts in this process.

    Args:
        key: name of the environment in this process.
        make_env: makes it.
        settings: the hyper-parameters.
        budgeted: whether the Q network masks calls when the budget is spent.
        seed: seed of the first episode, and of weights, exploration and replay.
    """
    quiet()
    _environments[key] = make_env
    register_env(NAME, _environment)
    config = (
        DQNConfig(algo_class=SwitchDQN)
        .environment(NAME, env_config={"key": key, "updates_per_step": settings.updates_per_step})
        .env_runners(
            num_env_runners=0,
            gym_env_vectorize_mode="vector_entry_point",
            num_envs_per_env_runner=settings.num_envs,
            rollout_fragment_length=4,
        )
        .learners(num_learners=0)
        .training(
            lr=settings.learning_rate,
            gamma=settings.gamma,
            train_batch_size=settings.batch_size,
            num_steps_sampled_before_learning_starts=min(500, settings.steps // 10),
            target_network_update_freq=0,
            tau=TARGET_TAU,
            grad_clip=10.0,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True},
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=SwitchModule,
                model_config={
                    "hidden": HIDDEN,
                    "budgeted": budgeted,
                    "epsilon": [[0, 1.0], [settings.steps // 2, 0.3]],
                },
            )
        )
        .reporting(min_sample_timesteps_per_iteration=0, min_train_timesteps_per_iteration=0)
        .debugging(seed=seed, log_level="ERROR")
    )
    return config.build_algo()


def quiet() -> None:
    """Keep back what RLlib says that is of no use to a user: deprecations of its own, its metrics and its start."""
    for name in ("ray.rllib", "ray.tune", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\..*")
    # every algorithm registers its environments under the same name, which gymnasium remarks on
    warnings.filterwarnings("ignore", message=".*Overriding environment rllib-single-agent-env-v0.*")
