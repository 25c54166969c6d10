"""What tests of rounds share."""

import pytest


@pytest.fixture(scope="module")
def peak_is_known():
    """The peak of this machine is measured for every model that is tuned, which takes longer than to tune it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atlas_ray.finetune.run.device_peak", lambda *given: 1e9)
        yield
