"""Budgets of a switch in calls, tokens and money, and those that cannot be kept."""

import pytest
from pydantic import ValidationError

from atlas_ray.recipe.loading import Recipe
from atlas_ray.recipe.switch import Switch, budget_terms

LEVELS = ["GoToLocal"]


def table(budgets, **more):
    return Switch.model_validate({"levels": LEVELS, "budgets": budgets, **more})


PRICED = {"models": ["tiny-quick", {"model": "tiny-deepthink", "price_completion": 1.5}]}


def test_budgets_have_one_form_whichever_way_they_are_written():
    given = [2, {"calls": 3}, "calls=4", {"tokens": 2000}, "usd=0.02", {"usd": 1}]
    made = table(given, **PRICED)
    assert made.budgets == [2, 3, 4, "tokens=2000", "usd=0.02", "usd=1.0"]
    assert made.bills and not table([2, 3]).bills
    terms = [("calls", 2), ("calls", 3), ("calls", 4), ("tokens", 2000), ("usd", 0.02), ("usd", 1.0)]
    assert [budget_terms(b) for b in made.budgets] == terms
    recipe = Recipe.model_validate({"name": "r", "switch": {"levels": LEVELS, "budgets": given, **PRICED}})
    assert Recipe.model_validate(recipe.model_dump(mode="json")).switch == recipe.switch


@pytest.mark.parametrize(
    ("budget", "why"),
    [
        ({"tokens": 1, "usd": 1}, "in one unit"),
        ({"dollars": 1}, "in one unit"),
        ({}, "in one unit"),
        ({"tokens": 1.5}, "tokens: "),
        ({"tokens": -1}, "tokens: "),
        ({"usd": float("inf")}, "usd: "),
        ({"usd": None}, "usd: "),
        ("usd=much", "usd: "),
        ("2", "in one unit"),
        (True, "in one unit"),
    ],
)
def test_what_is_no_budget_is_named(budget, why):
    with pytest.raises(ValidationError) as error:
        table([budget], **PRICED)
    (problem,) = error.value.errors()
    assert problem["loc"][:2] == ("budgets", 0) and why in problem["msg"] and "\n" not in problem["msg"]


@pytest.mark.parametrize(
    ("budget", "more", "why"),
    [
        ("usd=1", {}, "models.1: usd=1.0 in budgets needs prices: give price_completion"),
        ("tokens=9", {"models": ["tiny-quick", "expert"]}, "models.1: tokens=9 in budgets, and the expert reads"),
        ("tokens=9", {"signals": ["margin"]}, "budgets: tokens=9 cannot be kept with margin"),
        ("tokens=9", {"encoder": "hidden"}, "budgets: tokens=9 cannot be kept with hidden"),
        ("tokens=9", {"baselines": ["threshold"]}, "budgets: tokens=9 cannot be kept with threshold"),
        ("tokens=9", {"boundary_episodes": 4}, "budgets: tokens=9 cannot be learnt from boundary_episodes"),
        ("50%", {}, "budgets: a percentage is of"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(budget, more, why):
    with pytest.raises(ValidationError) as error:
        table([budget], **more)
    assert why in str(error.value)


def test_budgets_of_calls_go_with_everything():
    assert table([2], signals=["margin", "catch-up"], encoder="hidden", baselines=["threshold"]).budgets == [2]
    assert table(["tokens=9"], signals=["catch-up"]).budgets == ["tokens=9"]
