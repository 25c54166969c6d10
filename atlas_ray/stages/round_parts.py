"""Parts of the rounds: each is an ordinary run directory below the run, made and resumed by the ordinary stages.

``rounds/1/seed0/lesson`` holds what the switch of the round before collected, ``tuned`` the QUICKs that were tuned on
it, ``switch`` the switch that was trained with the first of them, ``alone-ARM`` test episodes of the others;
``rounds/deepthink/0`` episodes that DEEPTHINK plays alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import envs
from ..agents.rendering_chat import make_renderer
from ..cluster.workers import worker_pool
from ..data.records import FIRST_ACTOR, Trajectory, read_trajectories, write_trajectories
from ..data.results import ALWAYS_DEEPTHINK
from ..engines.kept import kept_engines
from ..errors import AtlasError
from ..models.loading import load_tokenizer
from ..recipe.loading import Recipe, Rounds, Switch
from ..recipe.rounds import EQUAL_CALLS, EQUAL_TOKENS, LESSON_ARMS, RoundArm
from ..rundir import files
from ..rundir.files import RunLog, mend_jsonl
from ..rundir.layout import RunLayout
from ..rundir.progress import say
from ..switching.policies import PolicySpec, learned_policies, single_model_policies
from ..switching.stage import judge, score, train_together
from ..switching.tasks import engine_leases
from .round_scores import episodes_of
from .table import STAGE

SEEDS = 1000
"""A recipe's seed is below this."""
STRIDE = 101
"""The episodes that a round collects are those of a recipe whose seed is so much further per round."""


def of_rounds(recipe: Recipe) -> tuple[Rounds, Switch]:
    """Both tables of a recipe with rounds."""
    assert recipe.rounds is not None and recipe.switch is not None
    return recipe.rounds, recipe.switch


def term_of(recipe: Recipe, layout: RunLayout) -> PolicySpec:
    """The switch that the rounds go on with: the first of a recipe's."""
    assert recipe.switch is not None
    return learned_policies(recipe.switch, layout.root)[0]


class Chain:
    """The parts of all rounds for one training seed.

    Args:
        recipe: one with ``[rounds]``.
        run_dir: the run directory.
        seed: of the trainings.
    """

    def __init__(self, recipe: Recipe, run_dir: Path, seed: int) -> None:
        self.recipe, self.seed = recipe, seed
        self.config, self.settings = of_rounds(recipe)
        self.run = RunLayout(run_dir.resolve())
        self.log = RunLog(run_dir)

    # -- where things are, and what they are made by

    def part(self, number: int, name: str) -> RunLayout:
        """The run directory of a part."""
        return self.run.round_part(number, self.seed, name)

    def switch_layout(self, number: int) -> RunLayout:
        """Where a round's switch lies: that of round 0 is the run's own."""
        return self.part(number, "switch") if number else self.run

    def quick(self, number: int, arm: RoundArm | None = None) -> str:
        """The QUICK of a round, by default the one that goes on.

        An arm that had nothing to learn from has the untuned one, which is known once the round is tuned.
        """
        if not number:
            return self.settings.models[0].model
        arm = arm or self.config.arms[0]
        tuned = self.part(number, _trained_in(arm)).checkpoint(_selector(arm), self.seed)
        return str(tuned) if arm in LESSON_ARMS or tuned.is_dir() else self.quick(0)

    def base(self, number: int) -> str:
        """What a round tunes."""
        return self.quick(number - 1 if self.config.tune_from == "before" else 0)

    def switch_recipe(self, number: int, arm: RoundArm | None = None) -> Recipe:
        """The recipe of a round's switch, or of one with the QUICK of another arm."""
        if not number:
            return self.recipe
        switch = self.settings.model_dump(exclude_unset=True)
        term = next(name for name in ("costs", "budgets", "averages") if getattr(self.settings, name))
        switch |= {name: [] for name in ("costs", "budgets", "averages")}
        switch |= {term: getattr(self.settings, term)[:1], "seeds": [self.seed], "baselines": []}
        switch |= {"steps": self.config.switch_steps or self.settings.steps}
        switch["models"] = [m.model_dump(exclude_unset=True) for m in self.settings.models]
        switch["models"][0]["model"] = self.quick(number, arm)
        return self._within(self.recipe.seed, switch=switch)

    def lesson_recipe(self, number: int) -> Recipe:
        """The recipe by which a round collects."""
        before = self.switch_layout(number - 1)
        policy = term_of(self.switch_recipe(number - 1), before).directory(self.seed).name
        return self._collecting(f"{before.root}/{policy}", number, self.config.episodes)

    def deepthink_recipe(self, batch: int) -> Recipe:
        """The recipe of a batch of episodes that DEEPTHINK plays alone, on the seeds of round ``batch + 1``.

        A quarter of a lesson's, since each takes many times the calls of one under a switch.
        """
        return self._collecting(f"{self.run.root}/{ALWAYS_DEEPTHINK}", batch + 1, -(-self.config.episodes // 4))

    def tuning_recipe(self, number: int, arms: Sequence[RoundArm], base: str) -> Recipe:
        """The recipe by which a round tunes QUICK on the episodes that lie in the part's directory."""
        selectors = [_selector(arm) for arm in arms]
        tuning = self.config.finetune.model_dump(exclude_unset=True)
        tuning |= {"base": base, "arms": [{"selector": name} for name in selectors], "seeds": [self.seed]}
        collect = self.lesson_recipe(number).model_dump(exclude_unset=True)["collect"]
        return self._within(self.recipe.seed, collect=collect, select={"selectors": selectors}, finetune=tuning)

    def _collecting(self, switch: str, number: int, episodes: int) -> Recipe:
        """Failures are kept, so that a level at which hardly any episode ends well takes no more calls than others."""
        levels = dict.fromkeys(self.settings.levels, episodes)
        collect = {"switch": switch, "levels": levels, "max_steps": self.settings.max_steps, "keep": "all"}
        return self._within((self.recipe.seed + STRIDE * number) % SEEDS, collect=collect)

    def _within(self, seed: int, **tables: Any) -> Recipe:
        return recipe_within(self.recipe, seed, **tables)

    # -- the parts of a round

    def collect(self, number: int) -> None:
        """Collect with the switch of the round before."""
        layout, recipe = self.part(number, "lesson"), self.lesson_recipe(number)
        if STAGE["collect"].is_done(recipe, layout):
            return
        run_stages(recipe, layout, ("collect",))
        for name, (episodes, kept) in self.collected(number).items():
            say(f"  {name}: {kept} of {episodes} episodes ended well")
            if kept < episodes:
                about = {"round": number, "seed": self.seed, "env": name, "episodes": episodes - kept}
                self.log.event("rounds", "dropped", **about, why="no success")

    def lesson(self, number: int) -> list[Trajectory]:
        """The episodes that a round collected and QUICK may learn from: the successful ones."""
        return [t for t in read_trajectories(self.part(number, "lesson").expert) if t.success]

    def collected(self, number: int) -> dict[str, tuple[int, int]]:
        """How many episodes of each level a round collected, and how many QUICK may learn from."""
        kept = Counter(t.env for t in self.lesson(number))
        levels = self.usage(number)["levels"]
        return {name: (level["episodes"], kept[envs.full_id(name)]) for name, level in levels.items()}

    def was_taught(self, number: int) -> bool:
        """Whether there is a call in any episode that QUICK may learn from."""
        return any(step.actor != FIRST_ACTOR for t in self.lesson(number) for step in t.steps)

    def tune(self, number: int) -> None:
        """Tune QUICK on the round's lesson, and its controls."""
        arms = [arm for arm in self.config.arms if arm in LESSON_ARMS]
        if arms:
            layout = self.part(number, _trained_in(arms[0]))
            first = number if self.config.tune_from == "before" else 1
            if not layout.expert.exists():
                write_trajectories(layout.expert, [t for n in range(first, number + 1) for t in self.lesson(n)])
            run_stages(self.tuning_recipe(number, arms, self.base(number)), layout, ("select", "finetune"))
        for arm in self.config.arms:  # (the tokens of the first are known then)
            if arm not in LESSON_ARMS:
                self._distill(number, arm)

    def compare_switch(self, number: int) -> None:
        """Compare the switch with the QUICK of the round's first arm; it is trained first if it is not yet."""
        layout = self.part(number, "switch")
        if not layout.switch_episodes.exists():  # DEEPTHINK alone plays the test episodes as it did in round 0
            rows = files.jsonl_rows(self.run.switch_episodes)
            known = [row for row in rows if row["policy"] == ALWAYS_DEEPTHINK and not row.get("lost")]
            files.append_jsonl(layout.switch_episodes, known)
        run_stages(self.switch_recipe(number), layout, ("switch",))

    def play(self, number: int) -> None:
        """Play the episodes that judge the round, and the test episodes of its controls."""
        recipe, layout = self.switch_recipe(number), self.switch_layout(number)
        term, alone = term_of(recipe, layout), single_model_policies(self.settings)[0]
        judged, count = [alone, _one_seed(term, self.seed)], self.config.judge_episodes
        controls = self.config.arms[1:] if number else []
        runs = {arm: self.part(number, f"alone-{arm}") for arm in controls}
        left = [a for a, own in runs.items() if _missing(own.switch_episodes, alone, self.settings.test_episodes)]
        unjudged = any(_missing(layout.switch_judged, spec, count) for spec in judged)
        if not left and not unjudged:
            return
        lost = lambda task, attempt, why: say(f"  {task.who}: a worker died ({attempt})")  # noqa: E731
        with worker_pool(recipe, lost, len(self.settings.local)) as pool:
            if unjudged:
                with engine_leases(recipe) as leases:
                    judge(recipe, layout.root, judged, count, pool, leases)
            for arm in left:
                made, own = self.switch_recipe(number, arm), runs[arm]
                open_part(made, own)
                with engine_leases(made) as leases:
                    score(made, own.root, [alone], pool, leases)

    # -- what the arms took

    def record(self, number: int, arm: RoundArm) -> dict[str, Any]:
        """How the QUICK of an arm was tuned: the checkpoint's own record, or zeros where it was not."""
        path = self.part(number, _trained_in(arm)).checkpoint_record(_selector(arm), self.seed)
        if arm not in LESSON_ARMS and not path.is_file():
            return {"trajectories": 0, "steps_share": 0.0, "trained_tokens": 0}
        found: dict[str, Any] = files.read_json(path)
        return found

    def trained_tokens(self, number: int, arm: RoundArm) -> int:
        """Tokens that carried the loss on the way to an arm's QUICK, over all rounds that it comes from."""
        own = int(self.record(number, arm)["trained_tokens"])
        if number == 1 or self.config.tune_from == "start" or arm not in LESSON_ARMS:
            return own
        return own + self.trained_tokens(number - 1, self.config.arms[0])

    def calls_spent(self, number: int, arm: RoundArm) -> int:
        """Calls in all that was played to collect what an arm's QUICK learned from, this round's and earlier ones."""
        if arm == EQUAL_TOKENS:
            spent: int = files.read_json(self.part(number, arm).collecting_usage)["calls"]
            return spent
        return sum(int(self.usage(n)["calls"]) for n in range(1, number + 1))

    def usage(self, number: int) -> dict[str, Any]:
        """What a round's collecting took."""
        found: dict[str, Any] = files.read_json(self.part(number, "lesson").collecting_usage)
        return found

    # -- plain distillation

    def _distill(self, number: int, arm: RoundArm) -> None:
        layout = self.part(number, arm)
        if not layout.expert.exists() and not self._take(number, arm, layout):
            if arm == self.config.arms[0]:
                raise AtlasError(
                    f"{arm}: DEEPTHINK ends no episode well with as many calls as round {number} spent, so there is "
                    "nothing to tune QUICK on: let rounds.episodes be more, or take another first arm"
                )
            self.log.event("rounds", "not tuned", round=number, seed=self.seed, arm=arm, why="no success within it")
            say(f"  {arm}: DEEPTHINK ends no episode well with so little, so its QUICK stays untuned")
            return
        run_stages(self.tuning_recipe(number, [arm], self.quick(0)), layout, ("select", "finetune"))

    def _take(self, number: int, arm: RoundArm, layout: RunLayout) -> bool:
        """Write DEEPTHINK's successes that calls or tokens suffice for, and the calls for all until then."""
        if arm == EQUAL_CALLS:
            kept, spent = within_calls(self._deepthink(), self.calls_spent(number, arm))
        else:
            tokens = self.trained_tokens(number, self.config.arms[0]) // self.config.finetune.epochs
            kept, spent = within_tokens(self._deepthink(), tokens, self._tokens_of())
        files.write_json(layout.collecting_usage, {"kept": len(kept), "calls": spent})
        if kept:
            write_trajectories(layout.expert, kept)
        return bool(kept)

    def _deepthink(self) -> Iterator[Trajectory]:
        """Episodes that DEEPTHINK plays alone, failures too, its levels in turn.

        More are played as they are asked for, until it succeeds in none of a whole batch.
        """
        batch = 0
        while True:
            layout = self.run.deepthink_episodes(batch)
            run_stages(self.deepthink_recipe(batch), layout, ("collect",))
            found = read_trajectories(layout.expert)
            places = {env: place for place, env in enumerate(dict.fromkeys(t.env for t in found))}
            yield from sorted(found, key=lambda t: (t.seed, places[t.env]))
            if not any(t.success for t in found):
                return
            batch += 1

    def _tokens_of(self) -> Callable[[Trajectory], int]:
        renderer = make_renderer(load_tokenizer(self.quick(0)), self.recipe.style, self.recipe.prompt)
        return lambda t: sum(end - start for start, end in renderer.render(t).spans)


def train_switches(chains: Sequence[Chain], number: int) -> None:
    """Train the switches of a round for all training seeds, side by side where there are workers for it."""
    runs = [(chain.switch_recipe(number), chain.part(number, "switch")) for chain in chains]
    for recipe, layout in runs:
        if not STAGE["switch"].is_done(recipe, layout):
            open_part(recipe, layout)
    train_together([(recipe, layout.root) for recipe, layout in runs])


def within_calls(episodes: Iterator[Trajectory], calls: int) -> tuple[list[Trajectory], int]:
    """The successes that DEEPTHINK has when it may act so often, and the calls: all of them, where it has episodes.

    The episode in which they run out is broken off, and its calls are spent for nothing.
    """
    kept, left = [], calls
    for t in episodes:
        kept += [t] if t.success and len(t.steps) <= left else []
        left -= min(left, len(t.steps))
        if not left:
            break
    return kept, calls - left


def within_tokens(
    episodes: Iterator[Trajectory], tokens: int, tokens_of: Callable[[Trajectory], int]
) -> tuple[list[Trajectory], int]:
    """DEEPTHINK's first successes that together have at most so many tokens, and the calls until the last of them."""
    kept, calls, spent, left = [], 0, 0, tokens
    for t in episodes:
        calls += len(t.steps)
        if t.success:
            if (size := tokens_of(t)) > left:
                break
            kept.append(t)
            left, spent = left - size, calls
    return kept, spent


# -- runs within the run


def recipe_within(recipe: Recipe, seed: int, **tables: Any) -> Recipe:
    """The recipe of a run within the run: with these tables in place of the run's own."""
    own = {"collect", "select", "finetune", "evaluate", "switch", "rounds", "sweep", "storage", "trackers"}
    return Recipe.model_validate(recipe.model_dump(exclude_unset=True, exclude=own) | {"seed": seed} | tables)


def open_part(recipe: Recipe, layout: RunLayout) -> None:
    """Make a run directory within the run.

    What its recipe was before is no matter: it follows from the run's own and from where the run lies now.
    """
    for log in (layout.metrics, layout.events):
        mend_jsonl(log)
    files.write_json(layout.recipe, recipe.model_dump(mode="json"))


def run_stages(recipe: Recipe, layout: RunLayout, stages: Sequence[str]) -> None:
    """Run the stages of a run within the run that are not done."""
    left = [stage for stage in stages if not STAGE[stage].is_done(recipe, layout)]
    if left:
        open_part(recipe, layout)
    if kept := kept_engines():
        kept.make_room(recipe, left)
    for stage in left:
        start = time.monotonic()
        STAGE[stage].run(recipe, layout.root)
        RunLog(layout.root).metric("pipeline", name=stage, seconds=round(time.monotonic() - start, 2))


def _missing(path: Path, policy: PolicySpec, count: int) -> bool:
    """Whether episodes of a policy are not in a file yet, or were lost."""
    return any(len(episodes_of(path, policy.name, training)) < count for training in policy.training_seeds)


def _selector(arm: RoundArm) -> str:
    return arm if arm in LESSON_ARMS else "all"


def _trained_in(arm: RoundArm) -> str:
    """The part in which an arm is trained."""
    return "tuned" if arm in LESSON_ARMS else arm


def _one_seed(term: PolicySpec, seed: int) -> PolicySpec:
    return PolicySpec(
        term.name,
        term.kind,
        budget=term.budget,
        unit=term.unit,
        run=term.run,
        cost=term.cost,
        average=term.average,
        directories=(str(term.directory(seed)),),
        seeds=(seed,),
    )
