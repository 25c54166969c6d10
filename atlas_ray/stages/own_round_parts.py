"""Parts of the rounds of a model's own runs: each is an ordinary run directory below the run, made by ordinary stages.

Round 1 is the run itself, for all training seeds. ``rounds/2/seed0/lesson`` holds what the model of round 1 played and
what was selected of it, ``rounds/2/seed0/tuned`` the models that were tuned on it and their test episodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.kept import outcomes_of
from ..data.pairs import read_pairs, write_pairs
from ..data.records import iter_trajectories, read_annotations, read_trajectories, write_annotations, write_trajectories
from ..errors import InputError
from ..recipe.loading import Arm, Collect, Evaluate, Finetune, Recipe, Rounds, Select
from ..rundir import files
from ..rundir.layout import RunLayout
from .arm_compute import arm_compute
from .own_round_scores import Played, played_by
from .round_parts import SEEDS, STRIDE, recipe_within, run_stages
from .scored_episodes import EpisodeSet, judging_episodes, play_models

UNTUNED = "none"
"""Key of the model of round 0 in files of episodes."""


class OwnChain:
    """The parts of all rounds for one training seed.

    Args:
        recipe: one with ``[rounds]`` and without ``[switch]``.
        run_dir: the run directory.
        seed: of the trainings.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, seed: int) -> None:
        assert recipe.rounds and recipe.collect and recipe.select and recipe.finetune and recipe.evaluate
        self.recipe, self.seed, self.run = recipe, seed, RunLayout(run_dir.resolve())
        self.config: Rounds = recipe.rounds
        self.collecting: Collect = recipe.collect
        self.selecting: Select = recipe.select
        self.tuning: Finetune = recipe.finetune
        self.scoring: Evaluate = recipe.evaluate

    @cached_property
    def first(self) -> Arm:
        """The arm that goes on."""
        return self.tuning.arms[0]

    # -- where things are, and what they are made by

    def lesson(self, number: int) -> RunLayout:
        """Where the episodes of a round and their annotations lie."""
        return self.run if number <= 1 else self.run.round_part(number, self.seed, "lesson")

    def tuned(self, number: int) -> RunLayout:
        """Where the models of a round and their test episodes lie."""
        return self.run if number <= 1 else self.run.round_part(number, self.seed, "tuned")

    def key(self, number: int, arm: Arm | None = None) -> str:
        """Of a round's model in its files of episodes, by default of the one that goes on."""
        return f"{(arm or self.first).name}/{self.seed}" if number else UNTUNED

    def model(self, number: int) -> str:
        """The model of a round that goes on."""
        return str(self.tuned(number).checkpoint(self.first.name, self.seed)) if number else self.tuning.base

    def base(self, number: int) -> str:
        """What a round tunes."""
        return self.model(number - 1 if self.config.tune_from == "before" else 0)

    def recipe_of(self, number: int, base: str, seed: int) -> Recipe:
        """The recipe of a part: what plays is the model of the round before.

        Args:
            number: of the round.
            base: of its trainings.
            seed: of the part's recipe.
        """
        if number <= 1:
            return self.recipe
        plays = self.model(number - 1)
        collect, select, tuning, scoring = (
            table.model_dump(exclude_unset=True)
            for table in (self.collecting, self.selecting, self.tuning, self.scoring)
        )
        collect["agent"]["model"] = plays
        if self.selecting.model == self.tuning.base:
            select["model"] = plays
        select["start_after"] = []
        tuning |= {"base": base, "seeds": [self.seed]}
        tables: dict[str, Any] = {"collect": collect, "select": select, "finetune": tuning, "evaluate": scoring}
        return recipe_within(self.recipe, seed, **tables)

    def lesson_recipe(self, number: int) -> Recipe:
        """The recipe by which a round collects and selects, on episodes that no other round has."""
        seed = (self.recipe.seed + STRIDE * (number - 1)) % SEEDS
        return self.recipe_of(number, self.model(number - 1), seed)

    def tuned_recipe(self, number: int) -> Recipe:
        """The recipe by which a round tunes and scores, on the test episodes of all rounds."""
        return self.recipe_of(number, self.base(number), self.recipe.seed)

    # -- the parts of a round

    def teach(self, number: int) -> str | None:
        """Collect and select; why nothing can be learned, where a selector marks nothing."""
        try:
            run_stages(self.lesson_recipe(number), self.lesson(number), ("collect", "select"))
        except InputError as error:
            if error.code != "empty_selection":
                raise
            return error.message
        return None

    def tune(self, number: int) -> None:
        """Tune all arms on what was selected, and play their test episodes."""
        layout, recipe = self.tuned(number), self.tuned_recipe(number)
        self._gather(number, layout)
        run_stages(recipe, layout, ("finetune",))
        if not layout.evaluation_episodes.exists():  # the untuned model of this part has played them
            before = number - 1 if self.config.tune_from == "before" else 0
            known = files.jsonl_rows(self.tuned(before).evaluation_episodes)
            own = self.key(before)
            files.append_jsonl(
                layout.evaluation_episodes,
                [{**row, "model": UNTUNED} for row in known if row["model"] == own and not row["lost"]],
            )
        run_stages(recipe, layout, ("evaluate",))

    def _gather(self, number: int, layout: RunLayout) -> None:
        """Bring together what a round learns from: of this round, or of all where each tunes from the start."""
        if layout.expert.exists():
            return
        lessons = [self.lesson(n) for n in range(number if self.config.tune_from == "before" else 1, number + 1)]
        episodes = [read_trajectories(lesson.expert) for lesson in lessons]
        for name in self.selecting.selectors:
            made = [
                annotation
                for lesson, own in zip(lessons, episodes, strict=True)
                for annotation in read_annotations(lesson.annotations(name), own)
            ]
            write_annotations(layout.annotations(name), made)
        for name in dict.fromkeys(arm.selector for arm in self.tuning.arms if arm.pairs):
            write_pairs(layout.pairs(name), [pair for lesson in lessons for pair in read_pairs(lesson.pairs(name))])
        write_trajectories(layout.expert, [t for own in episodes for t in own])

    def judge(self, number: int) -> None:
        """Play the episodes that judge the round's model."""
        recipe, root = self.tuned_recipe(number), self.tuned(number).root
        play_models(recipe, root, {self.key(number): self.model(number)}, self._judging(number))

    # -- what came out

    def _judging(self, number: int) -> EpisodeSet:
        return judging_episodes(self.tuned_recipe(number), self.tuned(number).root, self.config.judge_episodes)

    def judged(self, number: int) -> Played:
        """The episodes that judge the round's model."""
        return played_by(self._judging(number).path, self.key(number))

    def tested(self, number: int, arm: Arm | None = None) -> Played:
        """Test episodes of a round's model, by default of the one that goes on."""
        return played_by(self.tuned(number).evaluation_episodes, self.key(number, arm))

    def outcomes(self, number: int) -> tuple[int, int]:
        """How many episodes a round has collected, and how many of them are successes."""
        ended = outcomes_of(iter_trajectories(self.lesson(number).expert))
        return sum(ended), ended.successes

    def record(self, number: int, arm: Arm) -> dict[str, Any]:
        """How a round's model of an arm was tuned."""
        found: dict[str, Any] = files.read_json(self.tuned(number).checkpoint_record(arm.name, self.seed))
        return found

    def trained_tokens(self, number: int, arm: Arm) -> int:
        """Tokens that carried the loss in all trainings that a model comes from."""
        earlier = range(1, number) if self.config.tune_from == "before" else ()
        return int(self.record(number, arm)["trained_tokens"]) + sum(
            int(self.record(n, self.first)["trained_tokens"]) for n in earlier
        )

    def flops(self, number: int, arm: Arm) -> float | None:
        """FLOPs of everything on the way to a model; None where some are not known."""
        parts = list(self._flops(number, arm))
        return None if None in parts else sum(part for part in parts if part is not None)

    def _flops(self, number: int, arm: Arm) -> Iterator[float | None]:
        for n in range(1, number + 1):
            each = arm if n == number else self.first
            yield arm_compute(self.lesson_recipe(n), self.lesson(n), each, [self.record(n, each)]).total
