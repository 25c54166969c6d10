"""Environment runners that are killed while a switch is trained."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import switch_mdps
from switch_mdps import MDPS

from atlas_ray.recipe import Switch
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
