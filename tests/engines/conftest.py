"""A chat server, and endpoints that are connected to it and do not wait."""

import pytest
from chat_server import ChatServer

from atlas_ray.engines import retry
from atlas_ray.engines.chat_endpoint import ChatEndpoint


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(retry, "sleep", lambda stop, _: stop.is_set())
    made = ChatServer()
    yield made
    made.kill()


@pytest.fixture
def connect(server):
    made = []

    def start(**kwargs):
        made.append(ChatEndpoint(server.url, "m", **{"retries": 2, **kwargs}))
        return made[-1]

    yield start
    for endpoint in made:
        endpoint.close()
