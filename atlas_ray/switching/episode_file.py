"""Episodes of policies in a JSONL file of the run, played by the workers where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..agents.rollout import SWITCH_JUDGE, SWITCH_RANDOM, SWITCH_TEST, seed_block
from ..cluster.result_file import ResultFile
from ..cluster.workers import chunks
from ..data.replies import Losses, summed
from ..rundir.progress import track
from .policies import PolicySpec, Row
from .stage_context import StageContext
from .tasks import PlayTask, Tally, count_losses, remaining, rollout_chunk


class EpisodeFile:
    """Episodes of several policies on the same seeds. Those in the file are not played again, lost ones once a start.

    Args:
        context: of the stage.
        path: of the file.
        split: of the environments.
        block: number of the block of seeds, see :func:`atlas_ray.agents.rollout.seed_block`.
        count: episodes of each policy.
        record: whether each row holds the episode too, see :func:`atlas_ray.switching.evaluate.rollout_policy`.

    Attributes:
        seeds: of the episodes.
        rows: what the file holds, without episodes that were lost at an earlier start.
    """

    def __init__(
        self, context: StageContext, path: Path, split: str, block: int, count: int, record: bool = False
    ) -> None:
        self.context, self.file, self.split, self.record = context, ResultFile(path), split, record
        labels = {
            SWITCH_TEST: "test episodes",
            SWITCH_JUDGE: "episodes that judge",
            SWITCH_RANDOM: "episodes to learn from",
        }
        self.label = labels.get(block, "episodes before the test")
        first = seed_block(context.recipe.seed, block)
        self.seeds = range(first, first + count)
        self.rows: list[Row] = [row for row in self.file.rows() if not row.get("lost")]
        context.episode_files.append(self)

    def play(self, policy_specs: Sequence[PolicySpec]) -> list[Row]:
        """Play what is missing, every training seed of each policy on the same episodes.

        Returns:
            All rows of these policies.

        Raises:
            AtlasError: more of a model's answers are none than may be.
        """
        context, tasks = self.context, self._missing(policy_specs)
        names, losses = {spec.name for spec in policy_specs}, Losses(context.recipe.max_lost_answers)
        for row in self.rows:
            if row["policy"] in names:
                count_losses(losses, row["policy"], context.settings, [row])
        with track(self.label, sum(len(task.seeds) for task in tasks)) as progress:
            for task, (found, tally) in self.file.stream(context.pool, rollout_chunk, tasks, _rows, remaining):
                row = _row(task, found)
                self._receive(task, row, tally)
                count_losses(losses, row["policy"], context.settings, [row])
                losses.check(early=True)
                replies = summed(losses.counts.values()).words()
                progress.advance(1, f"{task.who}{replies and f' · replies: {replies}'}")
        losses.check()
        return [row for row in self.rows if row["policy"] in names]

    def _missing(self, policy_specs: Sequence[PolicySpec]) -> list[PlayTask]:
        """Tasks for the episodes of these policies that are not in the file."""
        context, tasks = self.context, []
        known = {(row["policy"], row["training"], row["seed"]) for row in self.rows}
        for spec in policy_specs:
            for training in spec.training_seeds:
                missing = [seed for seed in self.seeds if (spec.name, training, seed) not in known]
                for part in chunks(missing, 4 * context.settings.num_envs):
                    play = (context.recipe, spec, training, tuple(part), self.split, context.mean_call, context.leases)
                    tasks.append(PlayTask(*play, self.record))
        return tasks

    def _receive(self, task: PlayTask, row: Row, tally: Tally) -> None:
        self.rows.append(row)
        self.context.tally += tally
        if row["lost"] or row.get("attempts"):
            about = {"policy": task.who, "seed": row["seed"], "attempts": row.get("attempts", 1)}
            self.context.log.event("switch", "lost episode", **about, dropped=row["lost"], why=row.get("error"))


def _row(task: PlayTask, found: Row) -> Row:
    return {"policy": task.policy_spec.name, "training": task.training, **found}


def _rows(task: PlayTask, result: tuple[Row, Tally]) -> list[Row]:
    return [_row(task, result[0])]
