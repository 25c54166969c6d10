"""What holds for all tests: one Ray per process, the long files first, and no skip that nobody expects."""

import os
import re
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # in tests only; clusters keep token authentication on
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

# how fast or how often data can be drawn is no property of what is tested, and differs on a busy machine
settings.register_profile("atlas", suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile("atlas")

TESTS = Path(__file__).parent


LONGEST = (
    "test_jobs.py",
    "test_faults.py",
    "envs/test_science_world.py",
    "finetune/test_ray.py",
    "test_pipeline.py",
    "switching/test_learning.py",
    "engines/test_actors.py",
    "cluster/test_workers.py",
    "sweep/test_sweep.py",
    "stages/test_rounds.py",
    "envs/test_conformance.py",
    "rundir/test_logs.py",
    "agents/test_token_agent.py",
)


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that no process is left alone with one of them at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(TESTS).as_posix(), len(places)))


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
