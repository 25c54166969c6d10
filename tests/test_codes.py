"""Errors carry a code for programs, which survives pickling and stands in the events of a run that failed."""

import ast
import errno
import pickle
import re
from pathlib import Path

import pytest

import atlas_ray
from atlas_ray import errors
from atlas_ray.cli import main
from atlas_ray.errors import CODES, AtlasError, EndpointError, InputError, StorageError
from atlas_ray.recipe.loading import load
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.serving.messages import Refused
from atlas_ray.sweep.trials import trials_of

ROOT = Path(atlas_ray.__file__).parent
CLASSES = [found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, AtlasError)] + [
    Refused
]
ARGUMENTS = {Refused: ("why", 409), EndpointError: ("why", 500, "error")}


def test_every_class_has_a_code_of_its_own():
    codes = [found.code for found in CLASSES]
    assert len(set(codes)) == len(codes) and set(codes) <= set(CODES)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){0,2}", code) and text for code, text in CODES.items())


def codes_in(path):
    """Codes that calls and classes of a module give."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {c.__name__ for c in CLASSES}:
            last = node.args[4:5] if node.func.id == "InputError" else []
            for value in [*last, *(k.value for k in node.keywords if k.arg == "code")]:
                yield from (c.value for c in ast.walk(value) if isinstance(c, ast.Constant) and c.value)


def test_every_code_that_is_given_is_documented_and_every_documented_one_is_given():
    given = {code for path in ROOT.rglob("*.py") if "envs" not in path.parts for code in codes_in(path)}
    assert given <= set(CODES)
    of_fields = {"unknown_key", "invalid_value", "no_space", "bad_place"}
    of_kinds = {f"endpoint_{kind}" for kind in ("error", "empty", "filtered", "context", "refused")}
    assert given | {c.code for c in CLASSES} | of_fields | of_kinds == set(CODES)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_code_survives_pickling(kind):
    made = kind(*ARGUMENTS.get(kind, ("why",)))
    made.code = "push_failed" if kind in (AtlasError, InputError) else made.code
    again = pickle.loads(pickle.dumps(made))
    assert (type(again), str(again), again.code) == (kind, str(made), made.code)


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "no_space"), (errno.EACCES, "bad_place"), (None, "not_written")]
)
def test_what_could_not_be_written_says_why(number, code):
    assert StorageError("why", number).code == code


@pytest.mark.parametrize("kind", ["", "error", "empty", "filtered", "context", "refused"])
def test_every_kind_of_an_endpoints_failure_has_a_code(kind):
    assert EndpointError("why", 500, kind).code in CODES


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("name = ", "not_toml"),
        ('name = "a"\nx = 1', "unknown_key"),
        ('name = "a"\nseed = -1', "invalid_value"),
        ('name = "a"\npatience = 1.0\nworker_timeout = 1.0', "given_twice"),
    ],
)
def test_a_recipe_that_is_refused_says_how(tmp_path, text, code):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError) as caught:
        load(tmp_path / "r.toml")
    assert caught.value.code == code
    with pytest.raises(InputError) as caught:
        load("no such recipe")
    assert caught.value.code == "unknown_recipe"


RECIPE = """
name = "r"
workers = 0
[collect]
levels = { GoToLocalS5N2 = 2 }
[select]
selectors = ["all"]
[finetune]
arms = [{ selector = "all" }]
context = 3
workers = 0
[evaluate]
held_in = ["GoToLocalS5N2"]
[sweep.space]
finetune.epochs = { grid = [1, 2] }
"""


def test_the_event_of_a_command_that_fails_has_the_code(tmp_path, capsys):
    (tmp_path / "r.toml").write_text(RECIPE)
    run = tmp_path / "run"
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(run)]) == 1, capsys.readouterr().err
    failed = [row for row in jsonl_rows(RunLayout(run).events) if row["event"] == "failed"]
    assert [row["code"] for row in failed] == ["context_overflow"]


def test_the_result_of_a_trial_that_fails_has_the_code(tmp_path):
    (tmp_path / "r.toml").write_text(RECIPE)
    trial = trials_of(load(tmp_path / "r.toml"), tmp_path / "run")[0]
    trial.fail(InputError("why", code="other_model"), 1.0)
    found = read_json(RunLayout(trial.directory).trial_result)
    assert (found["status"], found["code"], found["bad_input"]) == ("failed", "other_model", True)
