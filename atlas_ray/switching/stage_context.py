"""What the parts of one run of the switch stage share: recipe, worker pools, logs, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cluster.workers import ActorPool
from ..data.replies import Replies, summed
from ..recipe.loading import Recipe, Switch
from ..rundir import files
from ..rundir.layout import RunLayout
from .calibration import Calibration
from .signals import NOT_FITTED
from .tasks import STOPPED, Leases, PlayTask, Tally, TrainTask

if TYPE_CHECKING:
    from .episode_file import EpisodeFile


class StageContext:
    """State of one run of the switch stage.

    Args:
        recipe: one with a ``[switch]`` table.
        run_dir: the run directory.
        say: told a line of progress now and then.

    Attributes:
        pool: the workers that play.
        trainers: the workers that train, often the same.
        leases: each worker's shares of the engine actors.
        mean_call: what a mean call of DEEPTHINK takes, where the cost is measured.
        weights: of the signals that are fitted.
        from_logs: what rules that are fitted to logs are set by.
        fitting: training episodes that it and rules are fitted to, once some are played.
        episode_files: what was played, each in its file.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, say: Callable[[str], None]) -> None:
        if recipe.switch is None:
            raise ValueError("the recipe has no [switch] table")
        self.recipe, self.run_dir, self.say = recipe, run_dir.resolve(), say
        self.settings: Switch = recipe.switch
        self.layout, self.log = RunLayout(self.run_dir), files.RunLog(run_dir)
        self.pool: ActorPool[Any, Any]
        self.trainers: ActorPool[Any, Any]
        self.leases: Leases = ()
        self.mean_call: float | None = None
        self.weights = NOT_FITTED
        self.from_logs = Calibration()
        self.fitting: EpisodeFile | None = None
        self.episode_files: list[EpisodeFile] = []
        self.tally: Tally = Counter()
        self._earlier_events = len(list(files.jsonl_rows(self.layout.events)))

    def replies(self) -> Replies:
        """Count the replies in all episodes and trainings so far, those of earlier starts of the run too."""
        events = list(files.jsonl_rows(self.layout.events))[self._earlier_events :]
        stopped = [row for row in events if row["event"] == STOPPED]
        in_training = {}
        for row in [*files.jsonl_rows(self.layout.metrics), *stopped]:
            if row["stage"] == "switch" and "replies" in row:
                in_training[row["policy"]] = row["replies"]
        in_episodes = [r for file in self.episode_files for row in file.rows for r in row.get("replies", ())]
        return summed([*in_training.values(), *in_episodes])

    def on_worker_lost(self, task: TrainTask | PlayTask, attempt: int, reason: str) -> None:
        """Count, log and say that a worker was lost and its task is tried again."""
        self.tally["workers"] += 1
        self.log.event("switch", "worker lost", policy=task.who, attempt=attempt, reason=reason)
        self.say(f"  {task.who}: a worker died, trying again ({attempt})")

    def report_tally(self) -> None:
        """Say how many answers came from the cache, and what was lost on the way and made up for."""
        asked, cached = self.tally["asked"], self.tally["answered from the cache"]
        if asked:
            self.log.metric("switch", asked=asked, answered_from_cache=cached, cache_share=cached / asked)
            self.say(f"  {cached / asked:.0%} of {asked:,} answers came from the cache")
        if reissued := self.tally["engine answers"]:
            self.log.event("switch", "engine answers asked again", answers=reissued)
        faults = [f"{what} {n:,}" for what in ("workers", "env-runners", "engine answers") if (n := self.tally[what])]
        if faults:
            self.say(f"  lost on the way and made up for: {', '.join(faults)}")
