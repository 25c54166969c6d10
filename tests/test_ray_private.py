"""What is private or undocumented of Ray and used here is still there: a bump of Ray says here what it took.

Where a test fails, look for what has taken the place of the thing it names, and change `atlas_ray/ray_private.py`.
"""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import atlas_ray
from atlas_ray import ray_private

RAY = Path(ray.__file__).parent


def said(*files):
    return "".join((RAY / file).read_text(encoding="utf-8") for file in files)


def test_the_adapter_does_not_import_ray():
    code = "import sys, atlas_ray.ray_private; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nobody_else_uses_what_is_private():
    private = re.compile(
        r"\bray\._|\bfrom ray\._|_internal\b|_worker_manager|_trial_info|\._storage\b|_base_exc|_temp_dir="
    )
    users = [
        f"{path.name}:{number}"
        for path in Path(atlas_ray.__file__).parent.rglob("*.py")
        if path.name != "ray_private.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if private.search(line)
    ]
    assert users == []


def test_worker_output_can_be_taken_from_ray():
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as brought

    assert '"ray_print_logs"' in said("_private/worker.py"), "the handler that prints"
    taken = []
    ray_private.take_output(lambda *about: taken.append(about))
    try:
        brought.emit({"pid": 7, "ip": "10.0.0.2", "task_name": "fetch", "lines": ["one", "two"]})
        lines = ["Node status", f"{ray_private.EVENT_MARKER}Resized to 4 CPUs."]
        brought.emit({"pid": "autoscaler", "ip": "10.0.0.1", "lines": lines})
    finally:
        brought.remove_handler("atlas-ray")
    assert taken == [
        ("fetch", "7", "10.0.0.2", ["one", "two"]),
        ("process", "autoscaler", "10.0.0.1", ["Resized to 4 CPUs."]),
    ]


def test_lines_and_names_of_rays_own():
    from ray._private import ray_constants

    marks = {ray_constants.LOG_PREFIX_ACTOR_NAME, ray_constants.LOG_PREFIX_TASK_NAME, ray_constants.LOG_PREFIX_JOB_ID}
    assert marks == set(ray_private.LOG_MARKERS)
    assert ray_constants.LOG_PREFIX_EVENT_SUMMARY == ray_private.EVENT_MARKER
    assert f'"{ray_private.HEAD_RESOURCE}"' in said("autoscaler/v2/utils.py")


def test_the_token_of_this_machine_can_be_used():
    from ray._private.authentication import authentication_token_setup as setup

    found = inspect.signature(setup.maybe_enable_token_auth_if_token_available)
    assert "warn_if_disabled" in found.parameters


def test_options_of_ray_init_and_of_actors(tmp_path):
    from ray._common import ray_option_utils as options

    (name,) = ray_private.files_in(tmp_path)
    assert f'"{name}"' in said("_private/worker.py") or f"{name}:" in said("_private/worker.py")
    for name in ray_private.streaming(16):
        assert name in options.task_options, name


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("RAY_USAGE_STATS_ENABLED", ["_common/usage/usage_lib.py", "_common/usage/usage_constants.py"]),
        ("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", ["train/constants.py"]),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", ["_private/accelerators/accelerator.py"]),
        ("RAY_JOB_CONFIG_JSON_ENV_VAR", ["_private/runtime_env/constants.py"]),
        ("RAY_CHDIR_TO_TRIAL_DIR", ["train/constants.py"]),
        ("RAY_AIR_NEW_OUTPUT", ["tune/experimental/output.py"]),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", ["tune/constants.py"]),
        ("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", ["tune/constants.py"]),
        ("TUNE_DISABLE_SIGINT_HANDLER", ["tune/constants.py"]),
    ],
)
def test_variables_of_the_environment(name, files):
    assert f"{name}" in said(*files)


def test_every_variable_that_is_set_has_a_test():
    named = {mark.args[1][n][0] for mark in test_variables_of_the_environment.pytestmark for n in range(9)}
    assert named >= {*ray_private.QUIET, *ray_private.TUNE_ENVIRONMENT}


def test_the_raylet_knows_of_spare_workers():
    """It is no Python, so its program is looked through for the variable."""
    assert b"RAY_prestart_worker_first_driver" in (RAY / "core/src/ray/raylet/raylet").read_bytes()


def test_errors_hold_what_they_were_made_for():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    cause = ValueError("why")
    assert ray_private.caught_by(UserExceptionWithTraceback(cause, "text")) == [cause]
    assert ray_private.caught_by(ControllerError(cause)) == [cause]
    assert ray_private.caught_by(WorkerGroupError("two", {0: cause, 1: cause})) == [cause, cause]
    wrapped = ray.exceptions.RayTaskError("f", "traceback", cause)
    assert ray_private.caught_by(wrapped) == [cause]
    assert ray_private.caught_by(ValueError()) == []
    assert not ray_private.never_began(ray.exceptions.ActorDiedError())
    assert isinstance(ray.exceptions.RayActorError.actor_init_failed, property)


def test_what_tune_gives_a_trainable():
    from ray.tune import Trainable
    from ray.tune.result import TRIAL_INFO

    assert TRIAL_INFO == ray_private.TRIAL_INFO
    made = Trainable({TRIAL_INFO: "info"}, storage=None)
    assert ray_private.given_by_tune(made) == ("info", None)


def test_parts_of_rllib():
    from ray.rllib.algorithms.sac.sac_learner import SACLearner
    from ray.rllib.env.env_runner_group import EnvRunnerGroup
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.rllib.utils.actor_manager import FaultTolerantActorManager

    assert "self._worker_manager = FaultTolerantActorManager(" in inspect.getsource(EnvRunnerGroup)
    assert callable(FaultTolerantActorManager.foreach_actor) and callable(FaultTolerantActorManager.actors)
    assert callable(SingleAgentEnvRunner.ping)
    assert "seed=self._seed if self._needs_initial_reset" in inspect.getsource(SingleAgentEnvRunner)
    for name in ("curr_log_alpha", "target_entropy"):
        assert f"self.{name}: " in inspect.getsource(SACLearner), name


def test_a_configuration_that_learns_offline():
    from ray.rllib.algorithms.bc import BCConfig
    from ray.rllib.algorithms.dqn import DQNConfig

    assert DQNConfig().is_online and not BCConfig().is_online
    assert not ray_private.learn_offline(DQNConfig()).is_online


def test_loggers_that_say_what_is_of_no_use():
    from ray._common import deprecation
    from ray.data import dataset
    from ray.rllib.algorithms import algorithm
    from ray.tune import registry

    for module in (deprecation, algorithm, registry):
        assert module.logger.name.startswith(ray_private.LOGGERS), module
    assert dataset.logger.name.startswith(ray_private.DATA_LOGGERS)


def test_the_group_that_was_being_made_is_found_in_a_traceback():
    from ray.rllib.env.env_runner_group import EnvRunnerGroup

    class Group(EnvRunnerGroup):
        def __init__(self):
            raise ValueError("not made")

    with pytest.raises(ValueError, match="not made") as caught:
        Group()
    assert isinstance(ray_private.group_behind(caught.value), Group)
    assert ray_private.group_behind(ValueError()) is None


def test_proxies_of_serve_take_our_layers_and_our_http():
    assert '"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"' in said("serve/_private/constants.py")
    begin = said("serve/_private/http_util.py").partition("config=uvicorn.Config(")[2].partition("server.install")[0]
    assert "lambda: app" in begin and "http=" not in begin, "uvicorn chooses by its own table"
    assert "def _get_global_client(" in said("serve/context.py")
    protocols = pytest.importorskip("uvicorn.config", reason="needs the extra 'gateway'").HTTP_PROTOCOLS
    own = protocols["auto"]
    try:
        ray_private.speak_http_with("atlas_ray.gateway.limits:PatientProtocol")
        assert protocols["auto"] == "atlas_ray.gateway.limits:PatientProtocol"
    finally:
        protocols["auto"] = own
