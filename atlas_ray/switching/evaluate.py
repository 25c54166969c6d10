"""Playing with a switch, or with one of the baselines it has to beat."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

from ..agents.attempts import MOST_ATTEMPTS
from ..agents.decisions import Decision
from ..agents.rollout import EnvSpec
from ..data.records import actor
from ..data.replies import Losses, Replies
from ..models.encoders import make_encoder
from .budget import QUICK, BudgetGuard
from .episode import Episode
from .players import SwitchPlayer
from .policy import Situation, SwitchPolicy
from .signals import total_width
from .spending import Unit, dollars
from .text_game import TextGame

encoder_of = lru_cache(maxsize=1)(make_encoder)
"""The encoder of a recipe, loaded once per process."""


NO_PROPOSAL = Decision(None, "")
"""Where QUICK gives no answer; if it then has to act, it is asked again."""


class Policy(Protocol):
    """Decides for a batch of situations: the number of the model that acts, 0 for QUICK."""

    @property
    def needs(self) -> frozenset[str]:
        """What it wants to be told besides: ``encoded``, ``margin``, ``agrees``, ``past``, ``proposal``."""
        ...

    def decide(self, situations: Sequence[Situation]) -> list[int]:
        """One decision for each situation."""
        ...


def evaluate_policy(
    policy: Policy,
    agents: Sequence[SwitchPlayer],
    specs: Sequence[EnvSpec],
    seeds: Sequence[int],
    *terms: Any,
    **options: Any,
) -> list[dict[str, Any]]:
    """:func:`rollout_policy` to the end: the rows in the order of ``seeds``."""
    rows = {row["seed"]: row for row in rollout_policy(policy, agents, specs, seeds, *terms, **options)}
    return [rows[seed] for seed in seeds]


def rollout_policy(
    policy: Policy,
    agents: Sequence[SwitchPlayer],
    specs: Sequence[EnvSpec],
    seeds: Sequence[int],
    budget: float | None = None,
    cost: float = 0.0,
    record: bool = False,
    weights: Sequence[float] | None = (),
    max_lost_answers: float = 1.0,
    budget_unit: Unit = "calls",
    run: int = 1,
    **game_options: Any,
) -> Iterator[dict[str, Any]]:
    """Play the episodes of ``seeds``, as many side by side as the engines have slots.

    Args:
        policy: who acts when.
        agents: from QUICK to DEEPTHINK.
        specs: seed s plays ``specs[s % len(specs)]``.
        seeds: one episode each.
        budget: most of an episode, in its unit; the guard turns down what is over it, and ends the episode where it
            allows no step.
        cost: c, for ``objective`` only.
        record: also keep the steps.
        weights: what a step of each model costs in c; by default 0 for the first and 1 for the others. None: what the
            step really took.
        budget_unit: of the budget; what is in tokens or dollars needs a game that ``bills``.
        run: steps that a model takes once it is called; the policy is not asked in between.
        max_lost_answers: share of a model's answers above which episodes without one are not played again.
        **game_options: of :class:`TextGame`.

    Yields:
        A row per episode, as they end: ``level``, ``seed``, ``success``, ``return`` (of the environment),
        ``objective`` (return less c times the weights or what was used), ``calls`` (steps of any model but the first),
        ``calls_by_model`` (steps of each), ``called_at`` (which steps were calls), ``steps``, ``overrides``,
        ``violations`` (by how much the budget was exceeded, in whole units: 0, or the guard is broken), ``tokens`` (fed
        to each model), ``flops``, ``catch_up`` (of these), ``seconds`` and ``money`` (of all models), of a game that
        bills ``spent`` (``tokens`` and ``usd``), with a policy that needs them the ``margins`` of all steps and what
        QUICK ``proposed`` at each (nothing where it gave no answer), and with ``record`` the ``episode`` itself:
        ``env``, ``instruction`` and the ``steps`` with the ``actor`` of each, and with the ``values`` that a switch
        gave a step by each model (None where the budget had no call left, nothing where a run was on); its ``score``,
        and the ``limit`` of its steps.
        ``lost``: a model gave no answer, so the episode says nothing; then ``error`` says why and ``lost_by`` is the
        number of the model. Where that may pass, it was played ``attempts`` times; ``lost_attempts`` is what those
        before the last took (``steps``, ``calls``, ``calls_by_model``, ``tokens``, ``flops``, ``catch_up``,
        ``seconds``, ``money``).
        ``replies`` where models write: what became of those of each (:class:`atlas_ray.data.replies.Replies`), in all
        attempts.
    """
    rows = min(*(agent.engine.slots for agent in agents), len(seeds))
    game = make_game(policy, agents, specs, rows, game_options)
    weights = [0.0] + [1.0] * (len(agents) - 1) if weights == () else weights
    rollouts = _Rollouts(
        policy, game, BudgetGuard(budget, rows, budget_unit, run), seeds, weights, Losses(max_lost_answers), record
    )
    for row in rollouts.ended():
        yield rollouts.result(row, cost)


class _Rollouts:
    """Episodes of one policy, as many side by side as the game has rows.

    Args:
        policy: who acts when.
        game: in which the models act.
        guard: keeps the budget.
        seeds: one episode each.
        weights: what a step of each model costs in c, None for what it really took.
        losses: what became of the models' answers.
        record: whether to keep the steps, with what a switch expected of each model.
    """

    def __init__(
        self,
        policy: Policy,
        game: TextGame,
        guard: BudgetGuard,
        seeds: Sequence[int],
        weights: Sequence[float] | None,
        losses: Losses,
        record: bool = False,
    ) -> None:
        self._policy, self._game, self._guard = policy, game, guard
        self._weights, self._losses = weights, losses
        self._waiting, self._attempts = deque(seeds), dict.fromkeys(seeds, 0)
        self._replies = {seed: [Replies() for _ in game.agents] for seed in seeds}
        self._lost_attempts: dict[int, dict[str, Any]] = {}
        self._charged = [0.0] * game.rows
        self._margins: list[list[float]] = [[] for _ in range(game.rows)]
        self._proposed: list[list[str]] = [[] for _ in range(game.rows)]
        self._record = record
        self._values: list[list[list[float | None]]] = [[] for _ in range(game.rows)]

    def ended(self) -> Iterator[int]:
        """The row of each episode that has ended and is not played again, before another begins there."""
        playing = list(range(self._game.rows))
        for row in playing:
            self._begin(row)
        while playing:
            for row in self._step(playing):
                if self._is_retried(self._game.episodes[row]):
                    self._note_lost_attempt(row)
                    self._waiting.append(self._game.episodes[row].seed)
                else:
                    yield row
                if self._waiting:
                    self._begin(row)
                else:
                    playing.remove(row)

    def result(self, row: int, cost: float) -> dict[str, Any]:
        """What :func:`rollout_policy` says of the episode that has ended in a row."""
        episode = self._game.episodes[row]
        found = _episode_row(self._game, self._guard, row, cost * self._charged[row])
        if self._margins[row]:
            found["margins"] = self._margins[row]
        if self._proposed[row]:
            found["proposed"] = self._proposed[row]
        if episode.lost:
            found |= {"error": episode.lost.reason, "lost_by": episode.lost_by}
        if (attempts := self._attempts[episode.seed]) > 1:
            found |= {"attempts": attempts, "lost_attempts": self._lost_attempts[episode.seed]}
        if any(replies := self._replies[episode.seed]):
            found["replies"] = [counts.row() for counts in replies]
        if self._record:
            values = self._values[row]
            found |= {
                "score": episode.score,
                "limit": episode.env.limit,
                "episode": _episode_record(episode, self._game.models, values),
            }
        return found

    def _begin(self, row: int) -> None:
        seed = self._waiting.popleft()
        self._game.begin(row, seed)
        self._attempts[seed] += 1
        self._guard.start(row)
        self._charged[row], self._margins[row], self._proposed[row], self._values[row] = 0.0, [], [], []

    def _step(self, playing: list[int]) -> list[int]:
        """Let the policy decide and the models act in these rows; those whose episode is over."""
        stopped = self._stop_empty(playing) if self._guard.quotes else []
        playing = [row for row in playing if row not in stopped]
        deciding = [row for row in playing if not self._guard.run_left(row)]
        seen = situations(self._policy, self._game, self._guard, deciding) if deciding else []
        for row, situation in zip(deciding, seen, strict=True):
            if situation.margin is not None:
                self._margins[row].append(situation.margin)
            if situation.proposal is not None:
                self._proposed[row].append(situation.proposal.action)
        wanted = dict(zip(deciding, self._decide(deciding, seen), strict=True))
        choices = {row: self._guard.grant(row, wanted.get(row, QUICK)) for row in playing}
        if self._record:
            for row in set(playing) - set(deciding):
                self._values[row].append([])
        for row, choice in choices.items():
            if choice:
                self._guard.record(row)
        outcomes = self._game.advance(choices)
        for row, outcome in outcomes.items():
            self._guard.settle(row, outcome.spent)
            self._charged[row] += outcome.used if self._weights is None else self._weights[choices[row]]
        return [*stopped, *(row for row, outcome in outcomes.items() if outcome.over)]

    def _stop_empty(self, playing: list[int]) -> list[int]:
        """Tell the guard what the next steps may cost, and end the episodes whose budget allows none."""
        stopped = []
        for row in playing:
            self._guard.quote(row, self._game.worst_cases(row))
            if self._guard.is_empty(row):
                self._game.stop(row)
                stopped.append(row)
        return stopped

    def _decide(self, playing: list[int], seen: list[Situation]) -> list[int]:
        if not seen or not self._record or not isinstance(self._policy, SwitchPolicy):
            return self._policy.decide(seen)
        values_NM = self._policy.values(seen)
        for row, values in zip(playing, values_NM.tolist(), strict=True):
            self._values[row].append([value if math.isfinite(value) else None for value in values])
        return [int(number) for number in values_NM.argmax(-1)]

    def _is_retried(self, episode: Episode) -> bool:
        """Count the replies of an episode that is over, and say whether it is lost and to be played again."""
        for number, replies in enumerate(episode.replies):
            self._replies[episode.seed][number].add(replies)
            self._losses.note(str(number), replies)
        lost = episode.lost
        if lost is None or not lost.passing or self._attempts[episode.seed] >= MOST_ATTEMPTS:
            return False
        return not self._losses.over(str(episode.lost_by))

    def _note_lost_attempt(self, row: int) -> None:
        """Add what an episode took that is to be played again."""
        seed, taken = self._game.episodes[row].seed, _taken(self._game, row)
        before = self._lost_attempts.get(seed)
        self._lost_attempts[seed] = taken if before is None else added(before, taken)


def added(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The sums of what two episodes took, models apart where they are."""
    return {
        name: [a + b for a, b in zip(value, second[name], strict=True)]
        if isinstance(value, list)
        else value + second[name]
        for name, value in first.items()
    }


def make_game(
    policy: Policy, agents: Sequence[SwitchPlayer], specs: Sequence[EnvSpec], rows: int, options: dict[str, Any]
) -> TextGame:
    """A game that shows the policy what it learned to see."""
    if isinstance(policy, SwitchPolicy):
        c = policy.config
        encoder = "hidden" if c.encoder == "hidden" else encoder_of(c.encoder, c.features - total_width(c.signals))
        options = {**options, "encoder": encoder, "signals": c.signals, "weights": c.weights}
    return TextGame(specs, agents, rows, **options)


def situations(policy: Policy, game: TextGame, guard: BudgetGuard, rows: list[int]) -> list[Situation]:
    """What the policy asks for, and nothing else: all of it takes QUICK's time."""
    encoded = list(game.observe(rows)) if "encoded" in policy.needs else [None] * len(rows)
    margins = [c.margin for c in game.confidence(rows)] if "margin" in policy.needs else [None] * len(rows)
    agrees = game.agrees(rows) if "agrees" in policy.needs else [None] * len(rows)
    pasts = [game.episodes[row].past for row in rows] if "past" in policy.needs else [None] * len(rows)
    answers = [p or NO_PROPOSAL for p in game.proposals(rows)] if "proposal" in policy.needs else [None] * len(rows)
    return [
        Situation(e.text, guard.shown(row), game.step_share(row), e.id, len(e.steps), *told)
        for row, e, told in zip(
            rows,
            (game.episodes[row] for row in rows),
            zip(encoded, margins, agrees, pasts, answers, strict=True),
            strict=True,
        )
    ]


def _taken(game: TextGame, row: int) -> dict[str, Any]:
    """Steps and compute of the episode in a row."""
    episode, usage = game.episodes[row], game.usage(row)
    by_model = [episode.acted.count(number) for number in range(game.models)]
    return {
        "calls": sum(by_model[1:]),
        "calls_by_model": by_model,
        "steps": len(episode.steps),
        "tokens": [u.tokens for u in usage],
        "flops": sum(u.flops for u in usage),
        "catch_up": sum(u.catch_up for u in usage),
        "seconds": sum(u.seconds for u in usage),
        "money": sum(u.money for u in usage),
    }


def _episode_row(game: TextGame, guard: BudgetGuard, row: int, charge: float) -> dict[str, Any]:
    episode, taken = game.episodes[row], _taken(game, row)
    called_at = [step for step, number in enumerate(episode.acted) if number]
    reward = sum(s.reward for s in episode.steps)
    return {
        "level": episode.spec.name,
        "seed": episode.seed,
        "success": episode.success,
        "lost": episode.lost is not None,
        "return": reward,
        "objective": reward - charge,
        "calls": taken.pop("calls"),
        "calls_by_model": taken.pop("calls_by_model"),
        "called_at": called_at,
        "steps": taken.pop("steps"),
        "overrides": guard.overrides[row],
        "violations": _over_budget(guard, len(called_at), episode),
        **taken,
        **({"spent": {"tokens": episode.spent.tokens, "usd": float(dollars(episode.spent.usd))}} if game.bills else {}),
    }


def _over_budget(guard: BudgetGuard, calls: int, episode: Episode) -> int:
    """By how much an episode went over its budget, counted behind the guard."""
    if guard.cap is None:
        return 0
    spent: int = calls if guard.unit == "calls" else getattr(episode.spent, guard.unit)
    return max(0, spent - guard.cap)


def _episode_record(episode: Episode, models: int, values: Sequence[list[float | None]]) -> dict[str, Any]:
    # a model that gives no answer leaves a decision without a step
    given = values[: len(episode.steps)] if any(values) else [()] * len(episode.steps)
    told: list[dict[str, Any]] = [{"values": v} if v else {} for v in given]
    return {
        "env": episode.spec.id,
        "instruction": episode.goal,
        "steps": [
            {**step.model_dump(), "actor": actor(number, models), **more}
            for step, number, more in zip(episode.steps, episode.acted, told, strict=True)
        ],
    }
