"""Stage 1 by models: a learned switch of another run and its models play, or one model alone, an agent (ours)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..agents.rollout import TRAIN, env_spec, seed_block
from ..agents.throughput import replies_told
from ..cluster.result_file import ResultFile, log_lost_workers
from ..cluster.workers import chunks, worker_pool
from ..data.kept import is_kept
from ..data.reasons import counted, told
from ..data.records import Step, Trajectory, actor, write_trajectories
from ..data.replies import Losses, Replies, summed
from ..recipe.loading import Recipe
from ..rundir.files import RunLog, write_json
from ..rundir.layout import RunLayout
from ..rundir.progress import say, track
from ..switching.evaluate import added
from ..switching.policies import PolicySpec
from ..switching.policy import SwitchPolicy
from ..switching.tasks import Leases, PlayTask, Tally, count_losses, engine_leases, remaining, rollout_chunk, switch_of
from .collect_policy import collecting_policy, playing_recipe, refuse_changed_switch, source_of
from .first_seeds import FirstSeeds

Row = dict[str, Any]
_MOST_TRIES = 10
_TAKEN = ("steps", "calls", "calls_by_model", "tokens", "flops", "seconds", "money")


def collect_by_switch(recipe: Recipe, run_dir: Path) -> list[Trajectory]:
    """Episodes of ``recipe.collect.switch`` or ``.agent`` into ``trajectories/expert.jsonl``, and what they took.

    Of every environment the first n seeds are taken whose episode ended as ``collect.keep`` says, whatever order the
    actors finish in. ``trajectories/usage.json`` sums up all episodes that
    were played for them, at earlier starts too, and attempts that were lost.

    Raises:
        AtlasError: too few seeds of an environment end so, or more of a model's answers than
            ``max_lost_answers`` are none; says why, and what helps.
        EnvironmentGoneError: an environment begins no episode any more.
        InputError: the policy is not here, or is another than the one with which collecting began.
    """
    collecting = _Collecting(recipe, run_dir.resolve())
    collecting.play()
    return collecting.finish()


class _Collecting:
    """One run of the stage: what was played so far, and what is still to be."""

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        config = recipe.collect
        assert config is not None
        self.recipe, self.config = recipe, config
        self.layout, self.log = RunLayout(run_dir), RunLog(run_dir)
        self.policy = collecting_policy(recipe)
        refuse_changed_switch(recipe, self.layout)
        self.source = source_of(recipe, self.policy)
        self.playing = playing_recipe(recipe, self.policy)
        self.spec = self._open_policy()
        self.losses, self.replies, self.tally = Losses(recipe.max_lost_answers), Replies(), Tally()
        self.rows: list[Row] = []
        there = {n: env_spec(self.playing, n, config.max_steps, "train").episodes() for n in config.levels}
        first = seed_block(recipe.seed, TRAIN)
        self.seeds = FirstSeeds(config.levels, first, there, _MOST_TRIES, self._is_of_use, self._too_few)
        self.part = ResultFile(self.layout.expert_part)
        for row in self.part.rows():
            self._note(row)
            if not row["lost"]:  # says nothing of the policy: a command that is given again plays it again
                self._add(row)

    def _open_policy(self) -> PolicySpec:
        """The policy to play, from a copy in this run: workers elsewhere have no other, and it stays what it is."""
        directory, copy = self.policy.directory, self.layout.collecting_switch
        if directory is None:
            return PolicySpec(self.source, "always")
        if not copy.is_dir():
            SwitchPolicy.load(directory).save(copy)
        config = SwitchPolicy.load(copy).config
        return PolicySpec(
            self.source,
            "learned",
            budget=config.budget,
            unit=config.unit,
            run=config.run_length,
            cost=config.cost,
            average=config.average,
            directories=(str(copy),),
            seeds=(0,),
        )

    def _is_of_use(self, row: Row) -> bool:
        return not row["lost"] and is_kept(self.config.keep, row["success"])

    def _note(self, row: Row) -> None:
        """Count what an episode took, now or at an earlier start."""
        self.rows.append(_without_steps(row))
        self.replies.add(summed(row.get("replies", ())))

    def _add(self, row: Row) -> None:
        """Take an episode for played."""
        count_losses(self.losses, self.source, switch_of(self.playing), [row])
        self.seeds.add(_without_steps(row))

    def play(self) -> None:
        """Play until every environment has what is asked for."""
        about = {"policy": self.source}
        pool_of = (self.recipe, log_lost_workers(self.log, "collect", lambda task: about), len(self.policy.local))
        have = sum(len(self.seeds.taken(name)) for name in self.config.levels)
        with (
            replies_told(self.log, "collect", lambda: self.replies),
            track(f"episodes of {self.source}", sum(self.config.levels.values()), have) as progress,
            worker_pool(*pool_of) as pool,
            engine_leases(self.playing) as leases,
        ):
            while wanted := self.seeds.wanted():
                stream = self.part.stream(pool, rollout_chunk, self._tasks(wanted, leases), self._rows, remaining)
                for task, result in stream:
                    (row,) = self._rows(task, result)
                    self.tally += result[1]
                    self._receive(row)
                    replies = self.replies.words()
                    progress.advance(self._is_of_use(row), replies and f"replies: {replies}")
            self.losses.check()

    def _tasks(self, wanted: Iterable[tuple[str, list[int]]], leases: Leases) -> list[PlayTask]:
        training, most, workers = self.spec.training_seeds[0], 4 * self.recipe.num_envs, max(1, self.recipe.workers)
        return [
            PlayTask(
                playing_recipe(self.recipe, self.policy, name),
                self.spec,
                training,
                tuple(some),
                "train",
                mean_call=None,
                leases=leases,
                record=True,
            )
            for name, seeds in wanted
            for some in chunks(seeds, min(most, math.ceil(len(seeds) / workers)))
        ]

    def _receive(self, row: Row) -> None:
        self._note(row)
        self._add(row)
        if row["lost"] or "attempts" in row:
            about = {"env": row["env"], "seed": row["seed"], "attempts": row.get("attempts", 1)}
            self.log.event("collect", "lost episode", **about, dropped=row["lost"], why=row.get("error"))
        self.losses.check(early=True)

    def _rows(self, task: PlayTask, result: tuple[Row, Tally]) -> list[Row]:
        """What stands in the file of an episode: what came of it, what it took and, if it may be kept, its steps."""
        found = result[0]
        took = {name: found[name] for name in _TAKEN}
        if "lost_attempts" in found:
            took = added(took, {name: found["lost_attempts"][name] for name in _TAKEN})
        if (number := self.policy.number) is not None:
            models = len(self.policy.settings.models)
            took |= {
                n: [sum(took[n]) if m == number else 0 for m in range(models)] for n in ("calls_by_model", "tokens")
            }
            took["calls"] = took["steps"] if number else 0
        row = {"env": found["level"], "seed": found["seed"], "success": found["success"], "lost": found["lost"], **took}
        row |= {name: found[name] for name in ("attempts", "replies", "error", "lost_by") if name in found}
        return [row | {"trajectory": self._trajectory(found).row()} if self._is_of_use(row) else row]

    def _trajectory(self, found: Row) -> Trajectory:
        """The episode; of a policy with who took each step. The choice is greedy, so that it had probability 1."""
        episode, number, models = found["episode"], self.policy.number, len(self.policy.settings.models)
        more = {"probability": 1.0} if number is None else {"probability": 1.0, "actor": actor(number, models)}
        leave_out = {"values"}
        if self.config.agent:  # nobody else could have acted
            more, leave_out = {}, {"values", "actor"}
        steps = ({name: value for name, value in step.items() if name not in leave_out} for step in episode["steps"])
        return Trajectory(
            id=f"{episode['env']}/{found['seed']}",
            env=episode["env"],
            task=episode["env"].split("/")[-1],
            seed=found["seed"],
            instruction=episode["instruction"],
            steps=tuple(Step(**{**step, **more}) for step in steps),
            score=found["score"],
            success=found["success"],
            source=self.source,
        )

    def _too_few(self, name: str, rows: list[Row]) -> str:
        lost = [row.get("error", "") for row in rows if row["lost"]]
        found = sum(self._is_of_use(row) for row in rows)
        what = {"all": "ended", "successes": "succeeded in", "failures": "failed in"}[self.config.keep]
        message = (
            f"{self.source} {what} {found} of {len(rows)} episodes of {name}, {self.config.levels[name]} are asked for"
        )
        if lost:
            message += f"; {len(lost)} were lost: {told(counted(lost))}"
        if self.config.keep == "all" or len(lost) > len(rows) / 2:
            return f"{message}. To go on, see that what plays runs, a server or a JVM, or ask for fewer"
        if self.config.keep == "failures":
            return f'{message}. To go on, ask for fewer, or keep its successes too (collect.keep = "all")'
        return (
            f"{message}. To go on, ask for fewer, leave this environment out, keep its failures too "
            '(collect.keep = "all"), or take a better switch or model'
        )

    def finish(self) -> list[Trajectory]:
        """Write what is kept, after what it took."""
        taken = [(row["env"], row["seed"]) for name in self.config.levels for row in self.seeds.taken(name)]
        places = {key: place for place, key in enumerate(taken)}
        kept: dict[int, Trajectory] = {}
        for row in self.part.rows():
            if "trajectory" in row and (place := places.get((row["env"], row["seed"]))) is not None:
                kept[place] = Trajectory.model_validate(row["trajectory"])
        items = [kept[place] for place in range(len(taken))]
        usage = self._usage()
        write_json(self.layout.collecting_usage, usage)
        write_trajectories(self.layout.expert, items)
        self.part.path.unlink(missing_ok=True)
        self._report(usage)
        return items

    def _usage(self) -> dict[str, Any]:
        """What all episodes took, those of earlier starts and lost ones too. Sums do not depend on their order."""
        levels = {}
        for name in self.config.levels:
            rows = self.seeds.rows(name)
            levels[name] = {
                "episodes": sum(not row["lost"] for row in rows),
                "kept": len(self.seeds.taken(name)),
                "successes": sum(row["success"] for row in rows),
                "lost": sum(row["lost"] for row in rows),
            }
        models = range(len(self.policy.settings.models))
        return {
            "policy": self.source,
            "models": [model.model for model in self.policy.settings.models],
            **{
                name: sum(level[name] for level in levels.values())
                for name in ("episodes", "kept", "successes", "lost")
            },
            "steps": sum(row["steps"] for row in self.rows),
            "calls": sum(row["calls"] for row in self.rows),
            **{n: [sum(row[n][m] for row in self.rows) for m in models] for n in ("calls_by_model", "tokens")},
            "flops": sum(row["flops"] for row in self.rows),
            "seconds": math.fsum(row["seconds"] for row in self.rows),
            "money": math.fsum(row["money"] for row in self.rows),
            **({"replies": self.replies.row()} if self.replies else {}),
            "levels": levels,
        }

    def _report(self, usage: dict[str, Any]) -> None:
        for name, level in usage["levels"].items():
            if failed := level["episodes"] - level["kept"]:
                why = "a success" if self.config.keep == "failures" else "no success"
                self.log.event("collect", "dropped", env=name, episodes=failed, why=why)
        if lost := usage["lost"]:
            say(f"  {lost} episodes were lost to their environment or for want of an answer, others took their place")
        if reissued := self.tally["engine answers"]:
            self.log.event("collect", "engine answers asked again", answers=reissued)
        numbers = {name: usage[name] for name in ("episodes", "kept", "successes", "lost", "steps", "calls", "seconds")}
        asked, cached = self.tally["asked"], self.tally["answered from the cache"]
        self.log.metric("collect", **numbers, **({"cache_share": cached / asked} if asked else {}))
        took = (
            f"{usage['steps']:,} steps"
            if self.config.agent
            else f"{usage['calls']:,} calls in {usage['steps']:,} steps"
        )
        say(
            f"  {usage['kept']:,} of {usage['episodes']:,} episodes of {self.source} kept, {usage['successes']:,} were "
            f"successes; they took {took}"
        )


def _without_steps(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "trajectory"}
