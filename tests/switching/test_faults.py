"""Environment runners that are killed while a switch is trained."""

import contextlib
import os
import signal
from functools import partial
from pathlib import Path

import pytest
import switch_mdps
from switch_mdps import MDPS

from atlas_ray.cluster.causes import culprit
from atlas_ray.errors import InputError
from atlas_ray.recipe.loading import Switch
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.train import train_switch


def pids():
    """Of the environment runners that are there."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(b"ray::SwitchRunner"):
                    found.append(int(folder.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("budget", [None, 2])
def test_training_outlives_its_environment_runners(ray_session, tmp_path, budget):
    mdp, rows, lost = MDPS["chain-12"], [], []
    settings = Switch(
        levels=["GoToLocal"], costs=[0.05], steps=6000, num_envs=8, env_runners=2, evaluate_every=500, gamma=0.98
    )
    cost = None if budget else 0.05

    def note(row):
        rows.append(row)
        if len(rows) in (1, 3):
            os.kill(pids()[0], signal.SIGKILL)

    policy = train_switch(
        tmp_path / "switch",
        settings,
        SwitchConfig(mdp.code.shape[1], (128, 64), budget=budget, cost=cost),
        switch_mdps.maker("chain-12", budget, cost or 0.0, rows=8),
        lambda p: {"objective": switch_mdps.value(mdp, p.greedy, 0.98, cost or 0.0, budget)},
        0,
        on_evaluation=note,
        on_fault=lost.append,
    )
    assert sum(lost) == 2
    assert len(rows) == 12
    best = switch_mdps.optimum(mdp, 0.98, cost or 0.0, budget)[0, -1]
    assert switch_mdps.value(mdp, policy.greedy, 0.98, cost or 0.0, budget) >= 0.95 * best


def broken(where, first_seed, stride):
    """Makes a game of which ``where`` raises what names a field."""

    def fail(*arguments, **more):
        raise InputError("is no model of the server", None, None, "switch.models.1")

    if where == "make":
        fail()
    made = switch_mdps.make_env("chain-12", None, 0.05, 8, first_seed, stride)
    setattr(made, where, fail)
    return made


@pytest.mark.parametrize(
    ("where", "runners"),
    [("step", 0), ("step", 1), pytest.param("make", 1, marks=pytest.mark.slow)],
)
def test_what_a_model_raises_ends_the_training_as_it_is(ray_session, tmp_path, where, runners):
    """RLlib makes a RuntimeError without a text of it, or starts its environment runners again for ever."""
    mdp = MDPS["chain-12"]
    settings = Switch(levels=["GoToLocal"], costs=[0.05], steps=200, num_envs=8, env_runners=runners)
    terms = SwitchConfig(mdp.code.shape[1], (128, 64), budget=None, cost=0.05)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - whatever RLlib makes of it
        train_switch(tmp_path / "switch", settings, terms, partial(broken, where), lambda p: {"objective": 0.0}, 0)
    found = culprit(caught.value)
    assert (type(found), str(found)) == (InputError, "switch.models.1: is no model of the server")


def test_a_training_goes_on_in_a_directory_of_any_name(ray_session, tmp_path):
    """Ray keeps the names of environments in ASCII, and pyarrow takes some paths for addresses."""
    mdp, rows = MDPS["chain-12"], []
    settings = Switch(levels=["GoToLocal"], costs=[0.05], steps=64, num_envs=8, evaluate_every=32)
    terms = SwitchConfig(mdp.code.shape[1], (128, 64), budget=None, cost=0.05)

    def note(row):
        rows.append(row)
        if len(rows) == 1:
            raise KeyboardInterrupt

    def train():
        make_env = switch_mdps.maker("chain-12", None, 0.05, rows=8)
        directory = tmp_path / "ö [a]#b%41 ?" / "switch"
        return train_switch(directory, settings, terms, make_env, lambda p: {"objective": 0.0}, 0, on_evaluation=note)

    with pytest.raises(KeyboardInterrupt):
        train()
    assert train().config == terms
    first, second = (row["step"] for row in rows)
    assert 32 <= first < 64 <= second, "it went on where it was"
