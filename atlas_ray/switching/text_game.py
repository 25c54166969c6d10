"""Text episodes in which one of several models acts at every step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from .. import envs
from ..agents.rollout import EnvSpec, EpisodeStarter, decision_seed
from ..agents.token_agent import NO_ANSWER, Agent, Decision, LostAnswer
from ..data.records import Step
from ..data.replies import Replies, because
from ..errors import EndpointError, InputError
from ..models.encoders import Encoder, normalized
from ..models.hashed_words import Vector
from .accounting import ComputeAccountant, ModelUsage, Unit, check_unit, time_shares, total_in_unit
from .billing import most_of_each, paid_for
from .decision_cache import CachedDecision, DecisionCache
from .environment import Outcome
from .episode import Episode, expert_action, expert_of, restore_env, take_step, with_recovery
from .players import ExpertPlayer, SwitchPlayer
from .signals import ANSWERED, NOT_FITTED, OVER, SCORED, WIDTHS, Confidence, Weights, of_answer, of_episode, total_width
from .spending import NOTHING, Amount

HIDDEN = "hidden"


@dataclass
class _StateCache:
    """What was found out about a state. ``replies``: of each model, as it was asked here."""

    decisions: dict[int, Decision] = field(default_factory=dict)
    replies: dict[int, Replies] = field(default_factory=dict)
    hidden: Vector | None = None
    advice: str | None = None


class TextGame:
    """Implements :class:`atlas_ray.switching.environment.Game` for text environments and two models or more.

    All models hold the true history, whoever acted; one that was not asked for some steps catches up at its next call,
    so an episode costs each model the tokens it had to read. In a vector step each model is asked once, for all of
    its rows. Several games may share players: each has the episodes of its own. An episode whose model gives no answer
    when it has to act is over and ``lost``, at the state in which it was asked; such an answer is not kept.

    Args:
        specs: drawn in turn: seed s plays ``specs[s % len(specs)]``.
        agents: from QUICK to DEEPTHINK, with at least ``rows`` slots.
        rows: episodes side by side.
        encoder: what a switch reads them with, ``"hidden"`` for QUICK's hidden state.
        signals: what it sees besides, see :mod:`atlas_ray.switching.signals`.
        decision_cache: decisions made before, for the same question to the same model; None asks every time.
        unit: what ``mean_call`` is in.
        mean_call: what a mean call of DEEPTHINK takes; None leaves ``Outcome.used`` at 0.
        absorb_env_deaths: an episode whose environment dies too often, or does not begin it, is over and lost; its next
            step says so. Without it :class:`envs.EnvironmentDiedError` is raised.
        bills: whether to count what every step is paid for, ``Outcome.spent`` and ``Episode.spent``.
        weights: of the signals that are fitted.

    Raises:
        InputError: a signal, the encoder or the unit cannot be had of these models.

    Attributes:
        expert_failures: how often an expert that gave up had to act; the environment was told "(no answer)".
    """

    def __init__(
        self,
        specs: Sequence[EnvSpec],
        agents: Sequence[SwitchPlayer],
        rows: int,
        encoder: Encoder | str | None = None,
        signals: Sequence[str] = (),
        decision_cache: DecisionCache | None = None,
        unit: Unit = "flops",
        mean_call: float | None = None,
        absorb_env_deaths: bool = False,
        bills: bool = False,
        weights: Weights = NOT_FITTED,
    ) -> None:
        if min(agent.engine.slots for agent in agents) < rows:
            raise ValueError(f"{rows} episodes side by side need as many slots in all engines")
        self.specs = list(specs)
        self.agents: tuple[SwitchPlayer, ...] = tuple(agent.fork() for agent in agents)
        self.rows, self.models = rows, len(self.agents)
        self.encoder, self.signals, self.decision_cache = encoder, tuple(signals), decision_cache
        self.unit, self.mean_call = unit, mean_call
        self.absorb_env_deaths, self.bills, self.weights = absorb_env_deaths, bills, weights
        if mean_call is not None:
            check_unit(self.agents, unit)
        for agent in self.agents:
            if isinstance(agent, ExpertPlayer):
                agent.ask = self._expert_decision
        if isinstance(encoder, str):
            if encoder != HIDDEN:
                raise ValueError(f"an encoder, or {HIDDEN!r} (got {encoder!r})")
            width = self._quick.engine.capabilities.hidden
        else:
            width = encoder.width if encoder else 0
        self.width = width + total_width(self.signals)
        self.episodes: dict[int, Episode] = {}
        self.expert_failures = 0
        self._beginnings = EpisodeStarter()
        self._accountant = ComputeAccountant(self.agents, rows)
        self._state_caches = [_StateCache() for _ in range(rows)]

    @property
    def _quick(self) -> Agent:
        quick = self.agents[0]
        if not isinstance(quick, Agent):
            raise InputError("the first model must be one whose hidden states can be read", field="switch.encoder")
        return quick

    def begin(self, row: int, seed: int) -> None:
        """Start the episode of ``seed``, with all models.

        Raises:
            envs.EnvironmentDiedError: it does not begin, and is not spared.
            EnvironmentGoneError: no episode of its environment begins any more.
        """
        if (before := self.episodes.pop(row, None)) is not None:
            envs.release(before.env)
        spec = self.specs[seed % len(self.specs)]
        # the seeds of one of several environments are len(specs) apart, and would skip episodes where they are few
        own = seed if spec.unbounded_episodes else seed // len(self.specs)
        begin = self._beginnings.start if self.absorb_env_deaths else self._beginnings.begin
        start = begin(spec, own, f"{spec.id}/{seed}")
        for agent in self.agents:
            if isinstance(agent, Agent):
                agent.engine.forget(row)
            agent.start(row, start.instruction, [], start.observation)
        self._accountant.start(row)
        self._state_caches[row] = _StateCache()
        episode = Episode(spec, seed, own, start.env, start.instruction, start.observation)
        episode.replies = [Replies() for _ in self.agents]
        if start.lost is not None:
            episode.fail(start.lost)
        elif any(isinstance(agent, ExpertPlayer) for agent in self.agents):
            episode.expert = expert_of(episode)
        self.episodes[row] = episode

    def observe(self, rows: Sequence[int]) -> Vector:
        """What the encoder makes of goal and observation, then the signals in their order: ``[len(rows), width]``."""
        if isinstance(self.encoder, str):
            parts = [self._hidden_states(rows)]
        else:
            texts = [self.episodes[row].text for row in rows]
            parts = [self.encoder(texts)] if self.encoder else [np.zeros((len(rows), 0), np.float32)]
        for name in self.signals:
            parts.append(np.array(self._signal(name, rows), np.float32).reshape(len(rows), WIDTHS[name]))
        return np.concatenate(parts, axis=1)

    def _signal(self, name: str, rows: Sequence[int]) -> Sequence[float | Vector]:
        episodes = [self.episodes[row] for row in rows]
        if name in ANSWERED:
            told = zip(episodes, self.proposals(rows), strict=True)
            return [of_answer(name, self.weights, e.goal, e.text, e.past, answer) for e, answer in told]
        if name in SCORED:
            return [getattr(sure, name) for sure in self.confidence(rows)]
        if name == "catch-up":
            return [self._accountant.unread_share(row, self.models - 1) for row in rows]
        return [of_episode(name, self.weights, e.text, e.past) for e in episodes]

    def confidence(self, rows: Sequence[int]) -> list[Confidence]:
        """Of QUICK's answers in the present states. QUICK is asked once per state: it acts by that answer.

        Raises:
            InputError: QUICK does not score the actions.
        """
        live = [row for row in rows if not self.episodes[row].over]
        self._query(0, live)
        found = []
        for row in rows:
            if self.episodes[row].over:
                found.append(OVER)
                continue
            decision = self._state_caches[row].decisions.get(0)
            if decision is None or decision.entropy is None or decision.margin is None:
                raise InputError("the first model must score the actions to be sure of them", field="agent.decide")
            found.append(Confidence(decision.entropy, decision.margin))
        return found

    def agrees(self, rows: Sequence[int]) -> list[bool]:
        """Whether QUICK's action in the present state is what the environment's expert would do, who may not know.

        True where QUICK gives no answer: if it then has to act, it is asked again.

        Raises:
            InputError: the environment has no expert.
        """
        told = zip(rows, self.proposals(rows), strict=True)
        return [decision is None or decision.action == self._expert_action(row) for row, decision in told]

    def proposals(self, rows: Sequence[int]) -> list[Decision | None]:
        """QUICK's answers in the present states, by which it acts; None where it gives none or the episode is over."""
        self._query(0, [row for row in rows if not self.episodes[row].over])
        return [None if self.episodes[row].over else self._state_caches[row].decisions.get(0) for row in rows]

    def step_share(self, row: int) -> float:
        """Steps taken over the step limit."""
        episode = self.episodes[row]
        return len(episode.steps) / episode.env.limit

    def usage(self, row: int) -> list[ModelUsage]:
        """What each model has used in this episode."""
        return self._accountant.usage(row)

    def worst_cases(self, row: int) -> list[Amount]:
        """What the next step may cost at most, by each model; nothing where its environment is gone."""
        offered: list[str] = []
        with self._absorbing_env_death(row):
            # whoever needs it; a longer list than a model is shown is a worse case
            offered = self._admissible(row, max(self.agents, key=lambda agent: agent.needs_list))
        over = self.episodes[row].over
        return [NOTHING] * self.models if over else most_of_each(self.agents, row, offered)

    def stop(self, row: int) -> None:
        """The episode is over, since its budget allows no further step."""
        self.episodes[row].over, self.episodes[row].success = True, False

    def decisions(self, choices: Mapping[int, int]) -> dict[int, Decision | LostAnswer]:
        """What the chosen model of every row would do now; one batch for each model.

        A model that gives no answer is asked again the next time. Rows whose episode is over are left out.

        Raises:
            EndpointError: a model's endpoint gives none at all.
        """
        return self._decide(choices, absorb=False)

    def _decide(self, choices: Mapping[int, int], absorb: bool) -> dict[int, Decision | LostAnswer]:
        found: dict[int, Decision | LostAnswer] = {}
        for number in range(self.models):
            own = sorted(r for r, choice in choices.items() if choice == number and not self.episodes[r].over)
            lost = self._query(number, own, absorb)
            own = [row for row in own if not self.episodes[row].over]
            found |= {row: lost[row] if row in lost else self._state_caches[row].decisions[number] for row in own}
        return {row: found[row] for row in choices if row in found}

    def advance(self, choices: Mapping[int, int]) -> dict[int, Outcome]:
        """One step of every row in ``choices``; one batch for each model."""
        found = self._decide(choices, absorb=True)
        return {row: self._step_row(row, choices[row], found.get(row)) for row in sorted(choices)}

    def _step_row(self, row: int, number: int, decision: Decision | LostAnswer | None) -> Outcome:
        episode, spent = self.episodes[row], None
        if self.bills and not episode.over:
            spent = paid_for(self.agents, row, number, decision)
            episode.spent = episode.spent.plus(self.worst_cases(row)[number] if spent is None else spent)
        asked = self._state_caches[row].replies
        replies = tuple(asked.get(n, Replies()) for n in range(self.models)) if asked else ()
        if isinstance(decision, LostAnswer):
            episode.over, episode.success, episode.lost, episode.lost_by = True, False, decision, number
        elif decision is not None:
            with self._absorbing_env_death(row):
                taken = with_recovery(episode, lambda: take_step(episode, decision))
        if episode.lost is not None or decision is None or isinstance(decision, LostAnswer):
            assert episode.lost is not None
            return Outcome(0.0, lost=episode.lost.reason, replies=replies)
        following, reward, terminated, truncated, info = taken
        step = Step(observation=episode.observation, thought=decision.thought, action=decision.action, reward=reward)
        episode.steps.append(step)
        episode.acted.append(number)
        episode.observation, episode.success, episode.score = following, info["success"], info["score"]
        for agent in self.agents:
            agent.advance(row, step, following)
        self._state_caches[row] = _StateCache()
        full = not all(agent.fits(row) for agent in self.agents)
        used = 0.0
        if self.mean_call is not None:
            total = total_in_unit(self.usage(row), self.unit)
            used, episode.charged = (total - episode.charged) / self.mean_call, total
        outcome = Outcome(reward, terminated, truncated, full, info["success"], used, replies=replies, spent=spent)
        episode.over = outcome.over
        return outcome

    def _query(self, number: int, rows: Sequence[int], absorb: bool = True) -> dict[int, LostAnswer]:
        """Let a model answer where it has not yet; what is known of it is not asked, but costs the same.

        ``absorb``: an endpoint that gives no answer at all loses these episodes, in place of raising its error.

        Returns:
            The rows in which it gave no answer.
        """
        agent, missing, offers, keys = self.agents[number], [], [], []
        for row in rows:
            if number in self._state_caches[row].decisions:
                continue
            offered: list[str] = []
            with self._absorbing_env_death(row):
                offered = self._admissible(row, agent)
            if self.episodes[row].over:
                continue
            key = None if self.decision_cache is None else agent.key(row, offered)
            cached = None if self.decision_cache is None or key is None else self.decision_cache.get(key)
            if cached is None:
                missing.append(row)
                offers.append(offered)
                keys.append(key)
                continue
            agent.on_cache_hit(row, cached.decision)
            self._record_decision(row, number, cached.decision, cached.seconds)
        lost: dict[int, LostAnswer] = {}
        if not missing:
            return lost
        begun = time.perf_counter()
        decisions = self._query_batch(agent, missing, offers, absorb)
        seconds = time.perf_counter() - begun
        tokens = [self._accountant.tokens(r, number, d.token_cost) for r, d in zip(missing, decisions, strict=True)]
        for row, decision, key, share in zip(missing, decisions, keys, time_shares(tokens), strict=True):
            self._record_decision(row, number, decision, seconds * share)
            if isinstance(decision, LostAnswer):
                lost[row] = decision
            elif self.decision_cache is not None and key is not None:
                self.decision_cache.put(key, CachedDecision(decision, seconds * share))
        return lost

    def _query_batch(
        self, agent: SwitchPlayer, rows: Sequence[int], offers: Sequence[Sequence[str]], absorb: bool
    ) -> Sequence[Decision | LostAnswer]:
        seeds = [decision_seed(self.episodes[r].id, len(self.episodes[r].steps)) for r in rows]
        try:
            return agent.act(rows, offers, seeds)
        except EndpointError as error:
            if not absorb:
                raise
            return [LostAnswer(because(error), error.kind or "refused")] * len(rows)

    def _record_decision(self, row: int, number: int, decision: Decision | LostAnswer, seconds: float) -> None:
        """Count what a model answered, and keep it until the next step if it is an answer."""
        self._accountant.charge(row, number, decision.token_cost, seconds)
        if decision.replies:
            self.episodes[row].replies[number].add(decision.replies)
            self._state_caches[row].replies.setdefault(number, Replies()).add(decision.replies)
        if isinstance(decision, Decision):
            self._state_caches[row].decisions[number] = decision

    def _hidden_states(self, rows: Sequence[int]) -> Vector:
        """QUICK's hidden states ``[len(rows), H]``, 0 where the episode is over."""
        asked = [r for r in rows if not self.episodes[r].over and self._state_caches[r].hidden is None]
        if asked:
            begun = time.perf_counter()
            states = normalized(self._quick.hidden(asked).numpy())
            seconds = time.perf_counter() - begun
            shares = time_shares([self._accountant.tokens(row, 0, None) for row in asked])
            for row, state, share in zip(asked, states, shares, strict=True):
                self._state_caches[row].hidden = state
                self._accountant.charge(row, 0, None, seconds * share)
        nothing = np.zeros(self._quick.engine.capabilities.hidden, np.float32)
        return np.stack([nothing if (h := self._state_caches[row].hidden) is None else h for row in rows])

    @contextmanager
    def _absorbing_env_death(self, row: int) -> Iterator[None]:
        """Whatever asks the environment of an episode; where that is gone, the episode is lost or the error raised."""
        try:
            yield
        except envs.EnvironmentDiedError as error:
            if not self.absorb_env_deaths:
                raise
            self.episodes[row].fail(error)

    def _admissible(self, row: int, agent: SwitchPlayer) -> list[str]:
        episode = self.episodes[row]
        if agent.needs_list or episode.env.cheap_list:
            return with_recovery(episode, lambda: episode.env.admissible())
        return []

    def _expert_action(self, row: int) -> str | None:
        """What the expert would do now, None where it gives up or its environment is gone."""
        advice: str | None = None
        with self._absorbing_env_death(row):
            advice = self._ask_expert(row)
        return advice

    def _ask_expert(self, row: int) -> str | None:
        episode, known = self.episodes[row], self._state_caches[row]
        if episode.expert is None and not episode.steps:
            episode.expert = expert_of(episode)
        elif episode.expert is None and not restore_env(episode, guided=True):
            raise envs.EnvironmentDiedError(f"{episode.id}: its replay for the expert went another way")
        if known.advice is None:
            try:
                known.advice = with_recovery(episode, lambda: expert_action(episode))
            except envs.ExpertGaveUpError:
                known.advice = ""
        return known.advice or None

    def _expert_decision(self, row: int) -> Decision:
        advice = self._expert_action(row)
        self.expert_failures += advice is None and not self.episodes[row].over
        return Decision(None, advice or NO_ANSWER)
