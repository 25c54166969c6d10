"""RLlib's DQN and SAC for a switch: their environment runners and learners, our modules, updates and replay buffer."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import ray
from ray import cloudpickle
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch
from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.tune.registry import register_env

from .. import ray_private
from ..cluster.causes import culprit, portable
from ..recipe.loading import Switch
from ..rundir import logs
from .environment import SwitchingVectorEnv
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
_RESTART_OFFSET = 10_000
"""Episodes by which an environment runner that was started again lies ahead, so that it plays none a second time."""

_PING_TIMEOUT = 30.0
"""Seconds for an environment runner to say that it is there."""

EnvCreator = Callable[[int, int], SwitchingVectorEnv]
"""Makes the environment whose first episode has the seed given, and the others lie so far apart."""

# Environments by name. RLlib pickles its configuration into checkpoints, so this must not hold the models themselves.
_environments: dict[str, EnvCreator] = {}


def _local_env_creator(context: Any) -> SwitchingVectorEnv:
    return _environments[context["name"]](context["first_seed"], context["stride"])


class _RemoteEnvCreator:
    """Makes the environment of an RLlib env-runner, in a process that does not know this one's path of modules yet."""

    def __init__(self, make_env: EnvCreator) -> None:
        self.path, self.pickled = sys.path, cloudpickle.dumps(make_env)

    def __call__(self, context: Any) -> SwitchingVectorEnv:
        sys.path += [entry for entry in self.path if entry not in sys.path]
        make_env: EnvCreator = cloudpickle.loads(self.pickled)
        return make_env(context["first_seed"], context["stride"])


class SwitchRunner(SingleAgentEnvRunner):
    """An env-runner that shares the episodes out with the others, and does not begin with them again after its death.

    RLlib loses the runner's number on the way to a vector environment, and gives the first reset a seed of its own.
    """

    def make_env(self) -> None:
        """Make the environment with episodes of its own."""
        context = dict(self.config.env_config)
        if self.worker_index:
            logs.attach_process(context["logs"], f"{context['log_name']}-{self.worker_index}")
            silence_rllib()
        first = context["first_episode"] + max(0, (self.worker_index or 0) - 1)
        stride = max(1, self.config.num_env_runners)
        if self.worker_index and ray.get_runtime_context().was_current_actor_reconstructed:
            first += (_RESTART_OFFSET + os.getpid() % 1000) * stride
        self.config.env_config = {**context, "first_seed": first, "stride": stride}
        ray_private.seed_first_reset(self, first)
        super().make_env()


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
                _raise_init_error(group)
            raise
        context, seed = algorithm.config.env_config, algorithm.config.seed
        algorithm.buffer = TransitionBuffer(CAPACITY, context["width"], seed, context["budget"])
        algorithm._pending_updates = 0.0

    @property
    def steps(self) -> int:
        """Environment steps sampled so far, those without an answer too."""
        buffer: TransitionBuffer = self.buffer  # type: ignore[attr-defined]
        return buffer.count + buffer.dropped

    def training_step(self) -> None:
        """Sample, store, update."""
        algorithm: Any = self
        config, buffer = algorithm.config, algorithm.buffer
        episodes, results = sample_env_runners(algorithm.env_runner_group)
        algorithm.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
        before = buffer.count
        buffer.add(episodes)
        steps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: algorithm.steps}
        if len(buffer) >= config.num_steps_sampled_before_learning_starts:
            algorithm._pending_updates += (buffer.count - before) * config.env_config["updates_per_step"]
            updates, algorithm._pending_updates = int(algorithm._pending_updates), algorithm._pending_updates % 1
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


def sample_env_runners(group: Any) -> tuple[list[Any], list[Any]]:
    """What the environment runners of a group have played now, and their metrics.

    RLlib would start one that raised an exception again, and again, without a word of why, and would wait for ever for
    one that cannot be made. Here an exception is raised, as it is without runners; one that was killed is replaced.

    Raises:
        Exception: whatever is the cause of a runner's.
    """
    if not group.num_remote_workers():
        return list(group.local_env_runner.sample()), [group.local_env_runner.get_metrics()]
    runners = ray_private.manager_of(group)
    episodes, metrics = [], []
    for answer in runners.foreach_actor(_sample_or_error):
        found = answer.get() if answer.ok else None
        if isinstance(found, BaseException):
            raise found
        if found is not None:
            episodes += found[0]
            metrics.append(found[1])
    if not metrics:
        _raise_init_error(group)
    return episodes, metrics


def _raise_init_error(group: Any) -> None:
    """Raise what kept an environment runner of a group from being made, if that is what is wrong."""
    for runner in ray_private.manager_of(group).actors().values():
        try:
            ray.get(runner.ping.remote(), timeout=_PING_TIMEOUT)
        except ray.exceptions.RayActorError as error:
            if ray_private.never_began(error):
                raise culprit(error) from error
        except ray.exceptions.GetTimeoutError:
            pass


def _sample_or_error(runner: Any) -> Any:
    """In a runner's process: its episodes and metrics, or the exception that it met."""
    try:
        return runner.sample(), runner.get_metrics()
    except Exception as error:
        return portable(error)


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
    """How an algorithm learns in this process, and samples here or in ``settings.env_runners`` others.

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
    _environments[name] = make_env
    known_as = quote(name)  # Ray keeps names in ASCII
    register_env(known_as, _RemoteEnvCreator(make_env) if settings.env_runners else _local_env_creator)
    sac = settings.algorithm == "sac"
    rate = [[0, settings.learning_rate], [settings.steps, settings.learning_rate / 10]]
    rllib_config: Any = SACConfig(algo_class=SwitchSAC) if sac else DQNConfig(algo_class=SwitchDQN)
    context = {
        "name": name,
        "first_episode": first_episode,
        "width": config.features + EXTRA,
        "budget": config.budget,
        "updates_per_step": settings.updates_per_step,
        "keep_replay": settings.keep_replay_buffer,
        "logs": logs.folder(),
        "log_name": f"runner-{Path(name).name}",
    }
    rllib_config = (
        rllib_config.environment(known_as, env_config=context)
        .env_runners(
            env_runner_cls=SwitchRunner,
            num_env_runners=settings.env_runners,
            gym_env_vectorize_mode="vector_entry_point",
            num_envs_per_env_runner=settings.num_envs,
            custom_resources_per_env_runner=resources or {},
            rollout_fragment_length=4,
        )
        .learners(num_learners=0, learner_class=SwitchSACLearner if sac else SwitchDQNLearner)
        .fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
        .training(
            gamma=settings.gamma,
            train_batch_size=settings.batch_size,
            num_steps_sampled_before_learning_starts=min(500, settings.steps // 10),
            target_network_update_freq=_NEVER,  # the learner moves them after every update
            tau=TARGET_TAU,
            grad_clip=10.0,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "no_local_replay_buffer": True},
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=SACModule if sac else DQNModule,
                model_config={
                    "hidden": HIDDEN,
                    "budget": config.budget,
                    "epsilon": [[0, 1.0], [settings.steps // 2, 0.5]],
                },
            )
        )
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
        .debugging(seed=seed, log_level="ERROR")
    )
    if sac:
        # "auto" is -1 for Discrete actions, which no policy reaches
        rllib_config = rllib_config.training(
            actor_lr=rate, critic_lr=rate, alpha_lr=rate, initial_alpha=0.05, target_entropy=0.02 * math.log(2)
        )
    else:
        rllib_config = rllib_config.training(lr=rate)
    return rllib_config


def action_costs(settings: Switch, price: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """``[models]``: what a step of each costs at a price a call."""
    return np.array(settings.weights, np.float32) * np.float32(price)


def silence_rllib() -> None:
    """Keep back what RLlib says that is of no use to a user: deprecations of its own, its metrics and its start."""
    logs.capture_loggers(*ray_private.LOGGERS)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\..*")
    # every algorithm registers its environments under the same name, which gymnasium remarks on
    warnings.filterwarnings("ignore", message=".*Overriding environment rllib-single-agent-env-v0.*")
