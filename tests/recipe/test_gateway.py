"""The `[gateway]` table, and the command that reads it."""

import json

import pytest

from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.gateway import app
from atlas_ray.recipe.loading import load

TEXT = """
name = "g"
[gateway.quick]
model = "small"
base_url = "http://127.0.0.1:1/v1"
[gateway.deepthink]
model = "large"
base_url = "https://api.example/v1"
price_completion = 10
[gateway.budget]
usd = 0.5
"""


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "g.toml"
    made.write_text(TEXT)
    return made


def test_quick_and_deepthink_are_short_for_two_models(path):
    table = load(path).gateway
    assert [(m.model, m.timeout, m.max_tokens, m.temperature) for m in table.models] == [
        ("small", 600.0, 4096, None),
        ("large", 600.0, 4096, None),
    ]
    assert (table.switch, table.on_empty, table.budget.usd) == ("random", "quick", 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gateway.share", "1.5"),
        ("gateway.explore", "-1"),
        ("gateway.budget.calls", "-1"),
        ("gateway.budget.usd", "inf"),
        ("gateway.daily.tokens", "1.5"),
        ("gateway.on_empty", "stop"),
        ("gateway.store", "mysql://x/y"),
        ("gateway.token_variable", "sk-secret"),
        ("gateway.nothing", "1"),
    ],
)
def test_what_is_wrong_is_named(path, field, value):
    with pytest.raises(InputError) as error:
        load(path, {field: value})
    assert field.removeprefix("gateway.").split(".")[0] in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("price_completion = 10", "", "price"),
        ("[gateway.quick]", "[gateway.models]", "quick"),
        ("price_completion = 10", "price_completion = 10\nmin_answer = 5000", "min_answer"),
        ('base_url = "https://api.example/v1"', "min_answer = 50", "min_answer"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(path, old, new, named):
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(InputError, match=named):
        load(path)


def test_the_command_prints_the_resolved_recipe_and_names_what_is_wrong(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(["gateway", str(path), "--dry-run", "--gateway.budget.calls", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["gateway"]["budget"] == {"calls": 3, "tokens": None, "usd": 0.5}
    assert not (tmp_path / "runs").exists()
    for arguments, said in (
        (["gateway", str(path), "policy"], "policy"),
        (["gateway", str(path), "--host", "0.0.0.0"], "token_variable"),
        (["gateway", str(path), "--gateway.token_variable", "NOT_THERE_AT_ALL"], "NOT_THERE_AT_ALL is not set"),
        (["gateway", str(path), "--port", "99999999"], "--port"),
        (["gateway", str(path), "--gateway.switch", "runs/x/switch-y"], "gateway.switch"),
        (["gateway", str(tmp_path)], "recipe.resolved.json"),
    ):
        assert main(arguments) == 2, arguments
        assert said in capsys.readouterr().err
    path.write_text('name = "g"\n')
    assert main(["gateway", str(path)]) == 2
    assert "[gateway]" in capsys.readouterr().err


def test_without_the_extra_the_error_names_it(path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sqlalchemy", None)
    with pytest.raises(InputError, match="atlas-ray\\[gateway\\]"):
        app.require_extra()
    assert main(["gateway", str(path), "--dry-run"]) == 2
