"""Models that all tests of sweeps share."""

import pytest
from collecting_runs import save_model
from switch_models import SHAPES


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory with ``quick`` and ``deepthink``, both untrained."""
    where = tmp_path_factory.mktemp("models")
    for name in SHAPES:
        save_model(name, where)
    return where
