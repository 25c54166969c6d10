import contextlib

import pytest
from gateway_parts import KEY, Upstream, gateway, recipe


@pytest.fixture
def upstream(monkeypatch):
    monkeypatch.setenv("ATLAS_TEST_KEY", KEY)
    made = Upstream()
    yield made
    made.kill()


@pytest.fixture
def serve(upstream, tmp_path):
    """Begin gateways in front of the upstream, which end with the test."""
    with contextlib.ExitStack() as opened:

        def begin(folder="state", tokens=(), **more):
            made = recipe(upstream.url, **more)
            return opened.enter_context(gateway(made, tmp_path / folder, tokens))

        yield begin
