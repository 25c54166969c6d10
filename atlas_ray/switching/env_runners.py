"""RLlib's environment runners for a switch: what they make, which episodes each plays, and what they return."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import ray
from ray import cloudpickle
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.tune.registry import register_env

from .. import ray_private
from ..cluster.causes import culprit, portable
from ..rundir import logs
from .environment import SwitchingVectorEnv

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


def register_environment(name: str, make_env: EnvCreator, remote: bool) -> str:
    """Register an environment with RLlib.

    Args:
        name: not used by another in this Ray session.
        make_env: makes it.
        remote: whether environment runners in other processes make it.

    Returns:
        The name that RLlib knows it by.
    """
    _environments[name] = make_env
    known_as = quote(name)  # Ray keeps names in ASCII
    register_env(known_as, _RemoteEnvCreator(make_env) if remote else _local_env_creator)
    return known_as


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
        raise_init_error(group)
    return episodes, metrics


def raise_init_error(group: Any) -> None:
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


def silence_rllib() -> None:
    """Keep back what RLlib says that is of no use to a user: deprecations of its own, its metrics and its start."""
    logs.capture_loggers(*ray_private.LOGGERS)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\..*")
    # every algorithm registers its environments under the same name, which gymnasium remarks on
    warnings.filterwarnings("ignore", message=".*Overriding environment rllib-single-agent-env-v0.*")
