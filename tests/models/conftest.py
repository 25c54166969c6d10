"""A working directory for models."""

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory, without a hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path
