"""The real cause of an error that went through RLlib, Ray Train, Ray's actors or Tune is what a user reads last."""

import os
import pickle

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.tune.error import _TuneStopTrialError

from atlas_ray import cli, pipeline
from atlas_ray.cluster.causes import culprit, described, passes, portable
from atlas_ray.cluster.workers import ActorPool
from atlas_ray.errors import AtlasError, EndpointError, InputError, StorageError, WorkerFailedError
from atlas_ray.rundir import logs

WRONG = InputError("is no model of the server", "r.toml", 7, "switch.models.1")
TEXT = "r.toml:7: switch.models.1: is no model of the server"
TRACE = f"""Traceback (most recent call last):
  File "a.py", line 3, in step
    raise InputError("x: y")
atlas_ray.errors.InputError: {TEXT}

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 9, in _try_env_step
    raise RuntimeError from e
RuntimeError
"""


def raised(error, cause=None):
    """As RLlib does it: with a cause, and without a text."""
    try:
        try:
            raise cause or error
        except type(cause or error) as inner:
            if cause is None:
                raise
            raise error from inner
    except BaseException as made:
        return made


def meanwhile(error, first):
    try:
        try:
            raise first
        except type(first):
            raise error
    except BaseException as made:
        return made


def of_task(cause, text="Traceback (most recent call last):\nX: y"):
    return RayTaskError("run", text, cause, "proc", 1, "127.0.0.1")


CHAINS = {
    "itself": WRONG,
    "RLlib, in this process": raised(RuntimeError(), WRONG),
    "two of RLlib's": raised(RuntimeError(), raised(ValueError("cannot step"), WRONG)),
    "met on the way": meanwhile(KeyError("env"), WRONG),
    "a Ray task": of_task(WRONG),
    "a Ray task that became one of ours": of_task(WRONG).as_instanceof_cause(),
    "a Ray task in a Ray task": of_task(of_task(WRONG).as_instanceof_cause()).as_instanceof_cause(),
    "a worker of Ray Train": WorkerGroupError("x", {1: ValueError("other"), 3: WRONG}),
    "a worker of Ray Train, with its traceback": WorkerGroupError("x", {0: UserExceptionWithTraceback(WRONG, "trace")}),
    "the controller of Ray Train": ControllerError(of_task(WRONG)),
    "an actor that could not be made": ActorDiedError(of_task(WRONG, TRACE)),
    "a trial of Tune, as text": _TuneStopTrialError(TRACE),
    "a chain that Ray has made text of": of_task(RuntimeError(), TRACE),
    "several at once": ExceptionGroup("two", [ValueError("a"), WRONG]),
    "ours in ours": raised(RuntimeError(), raised(WRONG, OSError("inner"))),
}


@pytest.mark.parametrize("name", CHAINS)
def test_the_first_of_our_own_errors_is_shown_with_its_field_and_exit_code(name):
    found = culprit(CHAINS[name])
    assert (type(found), str(found), found.exit_code) == (InputError, TEXT, 2)
    assert described(found) == TEXT


def suppressed():
    try:
        try:
            raise WRONG
        except InputError:
            raise ValueError("told better") from None
    except ValueError as made:
        return made


def bare():
    try:
        raise AssertionError
    except AssertionError as made:
        return made


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("boom"), "ValueError: boom"),
        (ValueError("two\n\tlines"), "ValueError: two lines"),
        (raised(RuntimeError(), ValueError("boom")), "ValueError: boom"),
        (raised(RuntimeError("of a wrapper"), raised(OSError("of another"), ValueError("boom"))), "ValueError: boom"),
        (of_task(ZeroDivisionError("by zero")).as_instanceof_cause(), "ZeroDivisionError: by zero"),
        (WorkerGroupError("long\ntrace", {0: ValueError("boom")}), "ValueError: boom"),
        (ActorDiedError(of_task(ValueError("boom"), "Traceback:\n  File x\nValueError: boom")), "ValueError: boom"),
        (_TuneStopTrialError("Traceback:\n  File x\nnumpy.linalg.LinAlgError: singular"), "LinAlgError: singular"),
        (meanwhile(RuntimeError(), ValueError("boom")), "ValueError: boom"),
        (meanwhile(ValueError("the better text"), KeyError("k")), "ValueError: the better text"),
        (suppressed(), "ValueError: told better"),
        (RuntimeError(" "), "RuntimeError without a text"),
    ],
)
def test_else_what_the_chain_began_with_is_shown_with_its_type(error, line):
    found = culprit(error)
    assert not isinstance(found, InputError)
    assert described(found) == line


def test_an_error_without_a_text_says_where_it_was_raised():
    assert (
        described(bare()) == f"AssertionError without a text, raised in {__file__}:{bare.__code__.co_firstlineno + 2}"
    )


def test_a_chain_that_leads_back_to_itself_has_an_end():
    first, second = ValueError("one"), RuntimeError("two")
    first.__cause__, second.__cause__ = second, first
    assert described(culprit(first)) in ("ValueError: one", "RuntimeError: two")


class TwoArgumentsError(Exception):
    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


class NoPickleError(Exception):
    def __init__(self):
        super().__init__("holds a lock")
        self.lock = lambda: None


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        (raised(RuntimeError(), WRONG), InputError, TEXT),
        (raised(RuntimeError(), ValueError("boom")), ValueError, "ValueError: boom"),
        (TwoArgumentsError("a", "b"), AtlasError, "TwoArgumentsError: a: b"),
        (NoPickleError(), AtlasError, "NoPickleError: holds a lock"),
        (RuntimeError(), AtlasError, "RuntimeError without a text"),
    ],
)
def test_what_leaves_a_process_says_the_same_in_the_next(error, kind, line):
    again = pickle.loads(pickle.dumps(portable(error)))
    assert (type(again), described(again)) == (kind, line)


@pytest.mark.parametrize(
    ("error", "helps"),
    [
        (EndpointError("HTTP 503", 503), True),
        (WorkerFailedError("a worker died 4 times"), True),
        (ConnectionResetError("gone"), True),
        (ActorDiedError(), True),
        (WRONG, False),
        (AtlasError("ValueError: boom"), False),
        (KeyError("a bug"), False),
        (StorageError("says so itself"), False),
    ],
)
def test_the_same_command_is_said_to_go_on_only_where_it_helps(error, helps, tmp_path, monkeypatch, capsys):
    assert passes(error) == helps

    def fail(recipe, run_dir, *arguments):
        with logs.run_logging(run_dir):
            raise raised(RuntimeError(), error)

    monkeypatch.setattr(pipeline, "run", fail)
    code = cli.main(["run", "demo", "--out", str(tmp_path)])
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith(f"atlas-ray: {described(error)}")
    assert ("the same command goes on from here" in line) == helps
    assert (f"(traceback: {tmp_path / 'logs' / 'driver.log'})" in line) == (code == 1)
    assert code == (2 if error is WRONG else 1)


def test_an_actor_hands_on_the_cause_and_not_its_wrapper(ray_session):
    def wrapped(task, kept):
        yield 1
        try:
            raise InputError("is no model", None, None, "switch.models")
        except InputError as error:
            raise RuntimeError from error

    with ActorPool(1) as pool, pytest.raises(InputError, match=r"^switch\.models: is no model$") as caught:
        list(pool.stream(wrapped, [1]))
    assert caught.value.field == "switch.models"


def test_an_actor_that_cannot_be_made_says_why_at_once(ray_session, monkeypatch):
    class Task:
        who = "londi-cost0.05"

        def __repr__(self):
            return "x" * 5000

    def die(task, kept):
        os._exit(1)
        yield

    with (
        ActorPool(1, retries=0) as pool,
        pytest.raises(WorkerFailedError, match="same task londi-cost0.05: ") as caught,
    ):
        list(pool.stream(die, [Task()]))
    assert len(str(caught.value)) < 500
    monkeypatch.setattr("atlas_ray.cluster.workers.logs.folder", lambda: 7)  # no path
    with ActorPool(1) as pool, pytest.raises(AtlasError, match="^TypeError: .*int"):
        list(pool.stream(die, [1]))
