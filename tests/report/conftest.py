"""Drawing takes nearly all the time of a report, and most tests look at its text."""

import pytest

from atlas_ray import report
from atlas_ray.report import selection, sweep, switching
from atlas_ray.report.page import Html


@pytest.fixture
def without_drawing(monkeypatch):
    """Empty pictures."""
    for module in (report, selection, sweep, switching):
        monkeypatch.setattr(module, "svg", lambda figure, prefix, description: Html("<svg></svg>"))
    monkeypatch.setattr(switching, "londi_figure", lambda *given: None)  # (it draws to find places for its labels)
