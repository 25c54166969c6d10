"""The switch's algorithms as trainables of Ray Tune: RLlib's classes, with a greedy evaluation per iteration."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray.tune import PlacementGroupFactory

from ..cluster.causes import portable
from ..ray_private import TRIAL_INFO, given_by_tune, stay_in_directory
from ..recipe.loading import Recipe
from ..rundir import files, logs
from ..rundir.layout import RunLayout
from ..switching.algorithm import SwitchDQN, SwitchSAC, algorithm_config
from ..switching.policies import PolicySpec, learned_policies
from ..switching.tasks import TrainingSetup, TrainTask, build_training, switch_of
from ..switching.train import Training
from .trials import Trial, trial_of

BEST = "best"
SetupFn = Callable[[Trial], TrainingSetup]


def policy_spec_of(trial: Trial) -> PolicySpec:
    """The one switch that a trial trains."""
    (policy_spec,) = learned_policies(switch_of(trial.recipe), trial.directory)
    return policy_spec


def setup_of(trial: Trial) -> TrainingSetup:
    """The training of a trial, whose models this process opens."""
    policy_spec = policy_spec_of(trial)
    task = TrainTask(trial.recipe, str(trial.directory), policy_spec, policy_spec.seeds[0], None, ())
    return build_training(task, trial.number)


class _SwitchTrial:
    """One iteration trains until the next greedy evaluation, which decides whether the policy is kept as the best.

    The trial's number is its name in Tune, for population based training copies configurations between trials. Of the
    configuration of :func:`atlas_ray.sweep.tuning.tune` it also takes ``setup_fn``, which makes the
    :class:`TrainingSetup` of a trial.
    """

    def __init__(self, config: dict[str, Any], **more: Any) -> None:
        stay_in_directory()
        sys.path += [entry for entry in config["path"] if entry not in sys.path]
        point, number = config["point"], int(config[TRIAL_INFO].trial_name)
        trial = trial_of(Recipe.model_validate(config["recipe"]), Path(config["run_dir"]), number, point["values"])
        logs.attach_process(config["logs"], f"trial-{trial.name}")
        logging.getLogger(__name__).info("%s", trial.about)
        torch.set_num_threads(max(1, int(point["bundles"][0]["CPU"])))
        self.trial, self.metric = trial, config["metric"]
        own = self.training_setup = config["setup_fn"](trial)
        self.place = policy_spec_of(trial).directory(switch_of(trial.recipe).seeds[0])
        state = trial.layout.trial_state
        # what goes on after a kill plays no training episode twice
        done = files.read_json(RunLayout(state).trial_history)[-1] if state.is_dir() else {}
        first, seed = done.get("next_seed", own.first_episode), own.seed + done.get("step", 0)
        asked = trial.recipe.placement.resource_request("workers")
        name = f"atlas-ray-sweep/{trial.directory}"
        made = algorithm_config(name, own.make_env, own.settings, own.config, seed, first, asked)
        super().__init__(made, **more)  # type: ignore[call-arg]
        self.training = self._training([])
        if done:
            self._go_on(state)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """What a trial asks for."""
        return PlacementGroupFactory(config["point"]["bundles"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial: imports and models take longer than small trainings."""
        self.cleanup()  # type: ignore[attr-defined]
        info, storage = given_by_tune(self)
        type(self).__init__(self, {**new_config, TRIAL_INFO: info}, storage=storage)
        return True

    def step(self) -> dict[str, Any]:
        """Train, evaluate, keep the best, and all that is needed to go on."""
        training, trial = self.training, self.trial
        if not training.over:
            try:
                policy, is_best = training.train_until_eval(super().step)  # type: ignore[misc]
            except Exception as error:
                raise portable(error) from error
            if is_best:
                policy.save(self.place)
            with files.atomic_directory(trial.layout.trial_state) as temporary:
                self._keep(temporary)
            files.write_json(trial.layout.trial_history, training.history)
        history = training.history
        best = next(row for row in reversed(history) if row["objective"] == history[-1]["best"])
        if training.over:
            trial.end("done", history[-1]["seconds"])
        return {"score": best[self.metric], "evaluation": len(history), "done": training.over}

    def _keep(self, directory: Path) -> None:
        super().save_checkpoint(str(directory))  # type: ignore[misc]
        files.write_json(RunLayout(directory).trial_history, self.training.history)
        files.write_json(directory / self.trial.state_values.name, self.trial.values)

    def _go_on(self, directory: Path) -> None:
        super().load_checkpoint(str(directory))  # type: ignore[misc]
        self.training = self._training(files.read_json(RunLayout(directory).trial_history))

    def _training(self, history: list[dict[str, Any]]) -> Training:
        own, most = self.training_setup, self.trial.recipe.max_lost_answers
        about = (own.settings, own.config, own.evaluate, own.first_episode, history, self.trial.about, most)
        return Training(self, *about)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For another trial: the state and the best policy."""
        self._keep(Path(checkpoint_dir))
        shutil.copytree(self.place, Path(checkpoint_dir) / BEST)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Go on from a state, which may be another trial's."""
        self._go_on(Path(checkpoint_dir))
        with files.atomic_directory(self.place) as temporary:
            shutil.copytree(Path(checkpoint_dir) / BEST, temporary, dirs_exist_ok=True)


class TrialDQN(_SwitchTrial, SwitchDQN):
    """Double DQN."""


class TrialSAC(_SwitchTrial, SwitchSAC):
    """Discrete SAC."""
