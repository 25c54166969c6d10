"""Drawing takes nearly all the time of a report, and most tests look at its text."""

import pytest

from atlas_ray import report
from atlas_ray.report import arm_headlines, selection, sweep, sweep_headlines, switch_headlines, switching
from atlas_ray.report.page import Html


@pytest.fixture
def without_drawing(monkeypatch):
    """Empty pictures."""
    for module in (report, arm_headlines, selection, sweep, sweep_headlines, switch_headlines, switching):
        monkeypatch.setattr(module, "svg", lambda figure, prefix, description: Html("<svg></svg>"))
    monkeypatch.setattr(arm_headlines, "tokens_figure", lambda *given: None)
    for figure in ("curve_figure", "differences_figure", "tokens_figure", "atlas_figure"):
        monkeypatch.setattr(sweep_headlines, figure, lambda *given: None)
    for module in (switch_headlines, switching):
        monkeypatch.setattr(module, "londi_figure", lambda *given: None)  # (it draws to find places for its labels)
