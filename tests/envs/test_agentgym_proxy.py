"""The AgentGym client where servers are reached through a proxy, or hold certificates of their own."""

import pytest
from agentgym_server import quick, serving  # noqa: F401
from http_proxy import Proxy, certificate

from atlas_ray.envs import EnvironmentDiedError
from atlas_ray.envs.agentgym import AgentGym

HOST = "gym.example"


@pytest.fixture
def through(serve, monkeypatch):
    """A server, and the proxy of the environment that takes every host for it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    server = serve("textcraft")
    proxy = Proxy(server.server_address)
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    yield server, proxy
    proxy.kill()


def test_an_episode_through_a_proxy(through):
    server, proxy = through
    env = AgentGym("textcraft", url=f"http://me:cret@{HOST}")
    assert env.reset(seed=1)[0].endswith("#1")
    assert env.step("right")[0] == "1 right"
    assert [target for _, target, _ in proxy.requests] == [f"http://{HOST}/{n}" for n in ("create", "reset", "step")]
    assert set(server.authorizations) == {"Basic bWU6Y3JldA=="}
    env.close()


def test_this_machine_is_reached_without_it(through):
    server, proxy = through
    env = AgentGym("textcraft", url=server.url)
    assert env.reset(seed=1)[0].endswith("#1")
    env.close()
    assert proxy.requests == []


def test_https_through_a_tunnel_with_a_certificate_of_the_environment(through, tmp_path, monkeypatch):
    server, proxy = through
    public, context = certificate(tmp_path, HOST)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(EnvironmentDiedError, match="CERTIFICATE_VERIFY_FAILED"):
        AgentGym("textcraft", url=f"https://{HOST}", retries=0).reset(seed=1)
    assert server.requests == []
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    env = AgentGym("textcraft", url=f"https://{HOST}")
    assert env.reset(seed=1)[0].endswith("#1")
    env.close()
    assert {target for _, target, _ in proxy.requests} == {f"{HOST}:443"}
