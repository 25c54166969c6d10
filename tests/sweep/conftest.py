"""Models that all tests of sweeps share."""

import pytest
from switch_models import SHAPES, model

from atlas_ray.models.tiny import build_tokenizer


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A directory with ``quick`` and ``deepthink``, both untrained."""
    where = tmp_path_factory.mktemp("models")
    for name in SHAPES:
        model(name).save_pretrained(where / name)
        build_tokenizer().save_pretrained(where / name)
    return where
