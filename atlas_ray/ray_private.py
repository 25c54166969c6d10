"""Everything private or undocumented of Ray, Ray Train, Tune and RLlib that is used here, each with the reason.

A new version of Ray may take any of it away: `tests/cluster/test_ray_private.py` names each. Importing this module does
not import Ray.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# -- Ray

LOG_MARKERS = (":actor_name:", ":task_name:", ":job_id:")
"""Ray prints lines that begin so into the output of each worker, for its own log monitor; no user wants them."""
EVENT_MARKER = ":event_summary:"
"""Begins the lines of the autoscaler that say what it did; its others are its whole status, every few seconds."""
HEAD_RESOURCE = "node:__internal_head__"
"""A resource that only the head has: for what must run there and needs neither CPUs nor GPUs."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",  # of options that are not used here
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the warning of a default to come, and that default
}
"""Environment of a process before it imports Ray, so that it says nothing of no use to a user."""


def quiet_environment() -> None:
    """Set :data:`QUIET` where the user has set nothing."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)


def start_no_spare_workers() -> None:
    """Let a Ray that is started from here start no processes ahead, one for each CPU: none of them would be used.

    They have the environment of their node, and ours have one of their own.
    """
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")


def environment_of_job() -> dict[str, str]:
    """The variables that ``ray job submit`` was given: Ray refuses a driver that names one of them again."""
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    found: dict[str, str] = (job.get("runtime_env") or {}).get("env_vars") or {}
    return found


def use_token() -> None:
    """Let this process show the token of this machine, if there is one: Ray does so for what it starts itself only."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def files_in(folder: Path) -> dict[str, Any]:
    """Option of ``ray.init``: where it puts its files, for which the public way is only an environment variable."""
    return {"_temp_dir": str(folder)}


def streaming(most: int) -> dict[str, Any]:
    """Options of an actor's method whose results are yielded: so many may wait unread."""
    return {"num_returns": "streaming", "_generator_backpressure_num_objects": most}


def take_output(take: Callable[[str, str, str, list[str]], None]) -> None:
    """Give ``take`` what processes of this job print, in place of Ray, which would print it too.

    It is told who writes (an actor, a task or "process"), the process id, the address and lines; of the autoscaler only
    those that say what it did.
    """
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as brought

    def unpack(data: dict[str, Any]) -> None:
        who, pid, lines = data.get("actor_name") or data.get("task_name") or "process", data["pid"], data["lines"]
        if pid == "autoscaler":
            lines = [line for line in lines if EVENT_MARKER in line]
        take(who, str(pid), data["ip"], [line.replace(EVENT_MARKER, "") for line in lines])

    for name in ("ray_print_logs", "atlas-ray"):
        brought.remove_handler(name)
    brought.add_handler("atlas-ray", unpack)


def node_types() -> list[dict[str, float]] | None:
    """What each kind of node has that the cluster's autoscaler may start; None where it does not say."""
    from ray._private.state import state

    config = state.get_cluster_config()
    if config is None or not config.node_group_configs:
        return None
    return [dict(kind.resources) for kind in config.node_group_configs if kind.max_count]


def never_began(error: BaseException) -> bool:
    """Whether an actor could not even be made: another one could not either."""
    return bool(getattr(error, "actor_init_failed", False))


def caught_by(error: BaseException) -> list[BaseException]:
    """What an error of Ray's tasks, or of Ray Train's workers and controller, holds of what it was made for."""
    found = [getattr(error, name, None) for name in ("cause", "_base_exc", "controller_failure")]
    failures = getattr(error, "worker_failures", None)
    found += list(failures.values()) if isinstance(failures, dict) else []
    return [each for each in found if isinstance(each, BaseException)]


# -- Serve


def serve_runs() -> bool:
    """Whether the cluster has a Ray Serve, whose host and port a second start would silently keep."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False) is not None


def speak_http_with(protocol: str) -> None:
    """Let uvicorn's servers in this process speak HTTP by the class ``module:name``; Serve lets it choose one."""
    import uvicorn.config

    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol


# -- Tune

TUNE_ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints even when it is told not to
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupt ends the sweep, which goes on when it is started again
}
"""Environment of the process that runs a sweep."""
TRIAL_INFO = "__trial_info__"
"""Key of a trainable's configuration under which Tune says which trial it is."""


def stay_in_directory() -> None:
    """Let a trial stay where it was started, or relative paths of the recipe would lead nowhere."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"


def given_by_tune(trainable: Any) -> tuple[Any, Any]:
    """What Tune has given a trainable besides its configuration, for one that is made again in the same actor."""
    return trainable._trial_info, trainable._storage


# -- RLlib

LOGGERS = ("ray.rllib", "ray.tune", "ray._common.deprecation")
"""They tell of RLlib's own deprecations, metrics and start, which are of no use to a user."""
DATA_LOGGERS = ("ray.data",)
"""They tell of every plan that is executed."""


def learn_offline(config: Any) -> Any:
    """A configuration of RLlib without environments and runners, as MARWIL and BC have it."""
    config._is_online = False
    return config


def log_temperature(learner: Any, module_id: str) -> Any:
    """The parameter that SAC's learner has made for the temperature of a module: our updates move it."""
    return learner.curr_log_alpha[module_id]


def target_entropy(learner: Any, module_id: str) -> float:
    """What the temperature of a module is to hold the entropy at; there once the learner is built."""
    return float(learner.target_entropy[module_id])


def seed_first_reset(runner: Any, seed: int) -> None:
    """The first reset of an environment runner's environments gets this seed in place of one of RLlib's own."""
    runner._seed = seed


def manager_of(group: Any) -> Any:
    """The actors of a group of environment runners: the group's own calls hide what an actor raised."""
    return group._worker_manager


def group_behind(error: BaseException) -> Any | None:
    """The group of environment runners that was being made when an error arose; nobody else holds it yet."""
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(group := frame.f_locals.get("self"), EnvRunnerGroup):
            return group
    return None
