"""The stages of ATLaS as a trainable of Ray Tune: one iteration runs all that a trial has not done yet."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune import PlacementGroupFactory

from .. import pipeline
from ..ray_private import stay_in_directory
from ..recipe.loading import Recipe
from ..rundir import logs
from ..rundir.files import jsonl_rows
from ..rundir.layout import RunLayout
from ..stages.table import ATLAS
from .trials import Trial, trial_of


class AtlasTrial(tune.Trainable):
    """A trial in a process that it may share with trials before it."""

    def __init__(self, config: dict[str, Any], **more: Any) -> None:
        stay_in_directory()
        super().__init__(config, **more)

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory:
        """What a trial asks for."""
        return PlacementGroupFactory(config["point"]["bundles"])

    def setup(self, config: dict[str, Any]) -> None:
        """Take on a trial."""
        sys.path += [entry for entry in config["path"] if entry not in sys.path]
        point, recipe = config["point"], Recipe.model_validate(config["recipe"])
        torch.set_num_threads(max(1, int(point["bundles"][0]["CPU"])))
        self.trial: Trial = trial_of(recipe, Path(config["run_dir"]), point["number"], point["values"])
        logs.attach_process(config["logs"], f"trial-{self.trial.name}")
        logging.getLogger(__name__).info("%s", self.trial.about)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial: imports and Ray's start of a process take longer than small trials."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Run the stages. What goes wrong in them goes wrong again, so it is noted, not raised."""
        start = time.monotonic()
        try:
            pipeline.run(self.trial.recipe, self.trial.directory, ATLAS)
        except Exception as error:
            self.trial.fail(error, time.monotonic() - start)
        else:
            self.trial.end("done", spent(self.trial.directory))
        return {"done": True}


def spent(run_dir: Path) -> float:
    """Seconds of a run's stages, over all its starts."""
    rows = jsonl_rows(RunLayout(run_dir).metrics)
    return float(sum(row["seconds"] for row in rows if row["stage"] == "pipeline"))
