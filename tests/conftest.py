"""What holds for all tests: one Ray for all, the long files first, and no skip that nobody expects."""

import functools
import os
import re
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # in tests only; clusters keep token authentication on
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# by default Ray's workers give way to every process of the session, so here they would wait for the tests beside them
os.environ.setdefault("RAY_worker_niceness", "0")
# the tests' simulators live for seconds, and compiling what they run as well as Java can takes half of their CPU time
os.environ.setdefault("JAVA_TOOL_OPTIONS", "-XX:TieredStopAtLevel=1")
# Ray's workers have it only if Ray is started with it
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "atlas_ray.gateway.proxy.layers")

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

# how fast or how often data can be drawn is no property of what is tested, and differs on a busy machine
settings.register_profile("atlas", suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile("atlas")

TESTS = Path(__file__).parent


# of those without Ray
LONGEST = (
    "envs/test_textworld.py",
    "storage/test_runs.py",
    "test_jobs.py",
    "clusters/test_scripts.py",
    "finetune/test_loop.py",
    "envs/test_science_world.py",
    "stages/test_rounds.py",
    "envs/test_textworld_games.py",
    "switching/test_decision_cache.py",
    "report/test_report.py",
    "finetune/test_process_group.py",
)


class OneRay(LoadFileScheduling):
    """A file of tests stays in one process, all that use Ray in the same one, and those of TextWorld's games too.

    Side by side their Rays would start a dozen processes on two cores and wait for each other; the tests beside them
    are those that need none.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        if uses_ray(TESTS.parent / file):
            return "ray"
        return "games" if file.endswith(("test_textworld.py", "test_textworld_games.py")) else file


@functools.cache
def uses_ray(path):
    return "ray_session" in path.read_text()


def pytest_xdist_make_scheduler(config, log):
    """Take the scheduler above for ``--dist loadfile``."""
    return OneRay(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items):
    """Put files with Ray, then long ones first, so that no process is left alone with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(
        key=lambda item: -1 if uses_ray(item.path) else places.get(item.path.relative_to(TESTS).as_posix(), len(places))
    )


def pytest_runtest_setup(item):
    """Give way to the process whose tests use Ray: they take longer than all the others'."""
    if "PYTEST_XDIST_WORKER" in os.environ and not uses_ray(item.path) and os.getpriority(os.PRIO_PROCESS, 0) == 0:
        os.nice(5)


@pytest.fixture(scope="session")
def ray_session():
    """One Ray for all tests of this process: starting it is the slowest thing in them."""
    import ray

    from atlas_ray.cluster.workers import ensure_ray

    ensure_ray(4)
    yield
    ray.shutdown()


def pytest_sessionfinish(session, exitstatus):
    """Fail a run whose skips are not all named by the regular expression ATLAS_EXPECTED_SKIPS (set in ``.ci/run``)."""
    expected = os.environ.get("ATLAS_EXPECTED_SKIPS")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if expected is None or reporter is None or hasattr(session.config, "workerinput"):
        return
    reasons = {str(report.longrepr[2]) for report in reporter.stats.get("skipped", [])}
    if unexpected := sorted(reason for reason in reasons if not re.search(expected, reason)):
        reporter.write_line(f"\nunexpected skips: {'; '.join(unexpected)}", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED
