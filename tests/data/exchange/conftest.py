"""A hub on loopback."""

import pytest
from hub_server import hub_server


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub, and an empty cache for its files; no token."""
    import huggingface_hub.constants as constants

    with hub_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server
