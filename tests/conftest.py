"""One Ray for the whole test session: starting it is the slowest thing in the tests."""

import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # in tests only; clusters keep token authentication on
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from hypothesis import HealthCheck, settings

# how fast or how often data can be drawn is no property of what is tested, and differs on a busy machine
settings.register_profile("atlas", suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile("atlas")


@pytest.fixture(scope="session")
def ray_session():
    import ray

    from atlas_ray.cluster.workers import ensure_ray

    ensure_ray(4)
    yield
    ray.shutdown()
