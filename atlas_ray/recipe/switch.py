"""The fields of `[switch]`: LONDI, which model acts when."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PlainValidator, ValidationError, model_validator

from ..data.results import ALWAYS_DEEPTHINK, ALWAYS_QUICK
from .base import ConfigModel, Environment, Positive, distinct
from .endpoint import EndpointFields
from .gateway import Budget

EXPERT = "expert"
"""A model of this name is the environment's own expert."""
MEASURED = "measured"
"""A cost of this name is what each call really took."""
ENCODERS = ("hashing", "hidden", "minilm")
"""Of a switch, that are no names of models."""
Unit = Literal["calls", "tokens", "usd"]
Baseline = Literal["random", "every", "threshold", "classifier", "verifier", "escalate", "triggers", "oracle"]
Signal = Literal[
    "entropy", "margin", "catch-up", "proposal", "visits", "unchanged", "since-call", "classifier", "verifier"
]
SCORED = ("entropy", "margin")
"""Signals that need the probabilities of the first model."""
DOUBTS = ("classifier", "verifier")
"""Baselines that doubt QUICK, by the signal of the same name, and are kept as switches."""
PAST = ("visits", "unchanged", "since-call")
"""Signals of the episode's own past, for which no model is asked."""


def _cost(given: Any) -> float | str:
    if given == MEASURED or (isinstance(given, int | float) and not isinstance(given, bool) and given >= 0):
        return given
    raise ValueError(f"must be a number of at least 0, or {MEASURED!r} (got {given!r})")


def _budget(given: Any) -> int | str:
    if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
        return given
    if isinstance(given, str) and re.fullmatch(r"[1-9]\d?%", given):
        return given
    unit: Any
    amount: Any
    if isinstance(given, dict) and len(given) == 1:
        ((unit, amount),) = given.items()
    elif isinstance(given, str) and "=" in given:
        unit, _, amount = given.partition("=")
        with suppress(ValueError):
            amount = float(amount) if unit == "usd" else int(amount)
    else:
        unit, amount = "", None
    if unit not in Budget.model_fields:
        raise ValueError(
            "must be a whole number of calls, a percentage as in '50%', or one of { calls = 2 }, { tokens = 2000 } and "
            f"{{ usd = 0.02 }}, in one unit (got {given!r})"
        )
    try:
        made = getattr(Budget.model_validate({unit: amount}), unit)
    except ValidationError as error:
        raise ValueError(f"{unit}: {error.errors(include_url=False)[0]['msg']} (got {amount!r})") from None
    if made is None:
        raise ValueError(f"{unit}: must be a number (got {amount!r})")
    return int(made) if unit == "calls" else f"{unit}={made!r}"


def budget_terms(given: int | str) -> tuple[Unit, int | float | None]:
    """Unit and amount of one of ``switch.budgets``, as in the recipe; None for a percentage."""
    if isinstance(given, int):
        return "calls", given
    unit, _, amount = given.partition("=")
    if unit == "tokens":
        return "tokens", int(amount)
    return ("usd", float(amount)) if unit == "usd" else ("calls", None)


Cost = Annotated[float | str, PlainValidator(_cost)]
Limit = Annotated[int | str, PlainValidator(_budget)]


class SwitchModel(EndpointFields):
    """One of the models. A name alone, `"tiny-quick"`, is short for `{ model = "tiny-quick" }`."""

    model: str
    """A shipped name, a directory or a hub id; with `base_url` the name by which the server knows it; or `expert`."""
    context: Positive | None = None
    """Most tokens of the server's conversation and answer; a longer one ends the episode."""
    weight: float | None = Field(default=None, ge=0)
    """A call costs c times this; without it 0 for the first model and 1 for the others."""
    window: Annotated[int, Field(ge=0)] | None = None
    """How many past steps it sees; without it as `[agent]` says."""
    catch_up: Annotated[int, Field(ge=0)] | None = None
    """Of the steps that it missed, most that it reads at a call: the last; what is before them it sees no more. Without
    it all."""


class Switch(ConfigModel):
    """LONDI: a learned switch between models."""

    renamed: ClassVar[dict[str, str]] = {"keep_replay": "keep_replay_buffer"}

    models: list[SwitchModel] = Field(min_length=2)
    """From the smallest (QUICK) to the largest (DEEPTHINK). `quick = A`, `deepthink = B` is short for two of them."""
    levels: list[Environment] = []
    """Environments, drawn in turn. With `logs` there may be none, and nothing is played."""
    max_steps: Positive | None = None
    """Own step limit of an episode; without it the level's. With `logs` it is that of the logged agent, too."""
    logs: list[str] = []
    """Learn from these directories or files in place of play: records of a gateway, or trajectories that say who acted
    and how likely that was, which may lie on the hub as in `collect.file`. One alone may be given as a text. With the
    baseline `classifier` one is fitted to the steps at which a gateway's `shadow` asked QUICK too."""
    behaviour: Annotated[float, Field(gt=0, lt=1)] | None = None
    """`logs`: the constant probability of a call at steps that do not say theirs; without it they are refused."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`logs`: share of the logged episodes that are not learned from, by which what was learned is estimated."""
    pessimism: Annotated[float, Field(ge=0)] = 1.0
    """`logs`, `random_episodes`: how strongly what these hardly say anything of is drawn to the least that it may be
    worth."""
    random_episodes: int = Field(default=0, ge=0)
    """Play so many training episodes once, with calls at random, and learn every switch from these; 0: each plays
    its own."""
    random_rate: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """`random_episodes`: share of the steps that are calls, of each model but the first alike."""
    costs: list[Cost] = []
    """LONDI: one switch is trained for each cost c of a call. `measured` charges what every call really took."""
    budgets: list[Limit] = []
    """LONDI-B: one switch is trained for each budget of an episode: of calls, where `50%` is of what the first cost's
    switch uses; or, of all models, `{ tokens = 2000 }` or `{ usd = 0.02 }`."""
    averages: list[Annotated[float, Field(gt=0)]] = []
    """Lagrangian: one switch is trained for each mean number of calls an episode that it is to keep to."""
    unit: Literal["flops", "seconds", "money"] = "flops"
    """What compute is measured in, and what `measured` charges."""
    price: float = Field(default=0.05, gt=0)
    """`measured`: what a mean call of an episode played by DEEPTHINK alone costs, in reward."""
    algorithm: Literal["dqn", "sac"] = "dqn"
    """How the switch is learned."""
    seeds: list[Annotated[int, Field(ge=0, lt=100)]] = Field(default=[0], min_length=1)
    """Every switch is trained once for each."""
    encoder: str = "hashing"
    """What the switch reads: `hashing` words, QUICK's `hidden` state, `minilm` (an extra), or a sentence encoder by hub
    id or directory."""
    features: Annotated[int, Field(ge=8)] = 256
    """Width of the hashed bag of words that encodes goal and observation."""
    signals: list[Signal] = []
    """What it sees besides: `entropy` and `margin` of QUICK's answer, and the answer's words (`proposal`), which QUICK
    then gives at every step; the share of the prompt that DEEPTHINK has yet to read (`catch-up`); how often the state
    was seen in the episode (`visits`), how many actions up to now had no effect (`unchanged`), how long ago the last
    call was (`since-call`); and the chance that QUICK would do what DEEPTHINK would, which is fitted before to
    `fit_episodes` of DEEPTHINK: by the state (`classifier`), or by the state and QUICK's answer (`verifier`)."""
    num_envs: Positive = 32
    """Episodes stepped together; one batch a model a vector step."""
    env_runners: int = Field(default=0, ge=0)
    """RLlib actors that play beside the one that learns, each with the models; 0: the learner plays itself."""
    cache: bool = True
    """Keep what the models answered to a prompt."""
    steps: Positive = 6_000
    """Environment steps of training for each switch; with `logs` or `random_episodes` its updates alone."""
    updates_per_step: float = Field(default=1.0, gt=0)
    """Gradient updates for each environment step."""
    batch_size: Positive = 64
    """Transitions an update."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the networks."""
    gamma: float = Field(default=0.98, gt=0, le=1)
    """Discount."""
    evaluate_every: Positive = 1_500
    """Environment steps between greedy evaluations, of which the best is kept."""
    evaluate_episodes: Positive = 48
    """Episodes of such an evaluation."""
    boundary_episodes: int = Field(default=0, ge=0)
    """Training begins with so many seeds that QUICK and DEEPTHINK each play alone; these steps count."""
    boundary_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the later training episodes that are of those seeds at which one of the two succeeds and the other does
    not."""
    playoff_episodes: int = Field(default=0, ge=0)
    """Other episodes that the four best of these policies play at the end, of which the best there is kept; with 0 the
    evaluations decide."""
    keep_replay_buffer: bool = True
    """Whether the replay buffer is part of what a killed training goes on from."""
    test_episodes: Positive = 300
    """Episodes of the final comparison, for every policy the same seeds."""
    baselines: list[Baseline] = ["random"]
    """Compared with every learned switch: calls at `random`, `every` k-th step, where QUICK's margin is below a
    `threshold`, where a `classifier` of states or a `verifier` of QUICK's answers doubts that QUICK does what DEEPTHINK
    would, or from one step on (`escalate`), each at the switch's own rate; where hand-written `triggers` hold; the
    `oracle` calls where QUICK does not do what the expert would. Classifier and verifier are kept as switches, too."""
    critical: list[Annotated[str, Field(min_length=1)]] = []
    """`triggers`: beginnings of actions of QUICK that count as critical, for which it is asked at every step."""
    escalate_after: Positive = 3
    """`escalate`: steps by QUICK after which DEEPTHINK takes over, or does not."""
    fit_episodes: Positive = 200
    """`classifier`, `verifier` (as baselines or signals), `escalate`: training episodes that they are fitted to."""
    rates: list[Annotated[float, Field(gt=0, lt=1)]] = []
    """Rates of calls at which these baselines are played besides."""
    run_length: Positive = 1
    """Steps that a model acts for once it is called, without a decision in between; of random calls, classifiers and
    verifiers too."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        made = dict(given)
        pair = [made.pop(name, None) for name in ("quick", "deepthink")]
        if "models" in made and pair != [None, None]:
            raise ValueError("models: give either models, or quick and deepthink")
        if isinstance(made.get("logs"), str):
            made["logs"] = [made["logs"]]
        models = made.setdefault("models", [pair[0] or "tiny-quick", pair[1] or "tiny-deepthink"])
        if isinstance(models, list):
            made["models"] = [{"model": m} if isinstance(m, str) else m for m in models]
        return made

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        distinct(self.levels, "levels")
        self._check_logs()
        self._check_runs()
        fitted = ["classifier"] if self.logs else DOUBTS
        if not self.learns and (not set(fitted) & set(self.baselines) or not self.rates):
            hint = f"; or, to fit one without learning, rates for the baseline {fitted[-1]}"
            raise ValueError(f"costs: name at least one cost, budget or average{hint}")
        if any(isinstance(n, str) and n.endswith("%") for n in self.budgets) and not self.costs:
            raise ValueError("budgets: a percentage is of what the first cost's switch uses, and costs is empty")
        for name in ("costs", "budgets", "averages", "seeds", "rates"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name}: one stands twice")
        for given in self.budgets:
            if (unit := budget_terms(given)[0]) != "calls":
                self._check_unit(given, unit)
        if self.models[0].model == EXPERT or self.models[0].base_url:
            needs = [s for s in self.signals if s in SCORED] + ["hidden"] * (self.encoder == "hidden")
            needs += ["threshold"] * ("threshold" in self.baselines)
            if needs:
                raise ValueError(f"models.0: {needs[0]} needs a first model whose probabilities can be read")
        return self

    def _check_unit(self, budget: int | str, unit: str) -> None:
        """Refuse a budget of tokens or money that cannot be kept."""
        asks: list[str] = [s for s in self.signals if s in (*SCORED, "proposal", "verifier")]
        asks += [rule for rule in self.baselines if rule in ("threshold", "verifier")]
        asks += ["hidden"] * (self.encoder == "hidden") + ["critical"] * bool(self.critical)
        if asks:
            raise ValueError(f"budgets: {budget} cannot be kept with {asks[0]}, for which QUICK is asked at every step")
        if self.boundary_episodes:
            raise ValueError(f"budgets: {budget} cannot be learnt from boundary_episodes, which have no budget: give 0")
        last, number = self.models[-1], len(self.models) - 1
        if unit == "tokens" and last.model == EXPERT:
            raise ValueError(f"models.{number}: {budget} in budgets, and the expert reads and writes no tokens")
        if unit == "usd" and not last.price_prompt and not last.price_completion:
            raise ValueError(f"models.{number}: {budget} in budgets needs prices: give price_completion")

    def _check_runs(self) -> None:
        """Refuse what cannot be learnt, or reserved, with runs of calls."""
        if self.run_length == 1:
            return
        cannot = {
            "logs": bool(self.logs),
            "averages": bool(self.averages),
            "boundary_episodes": self.boundary_episodes > 0,
            "budgets": self.bills or any(isinstance(n, int) and 0 < n < self.run_length for n in self.budgets),
        }
        if field := next((name for name, asked in cannot.items() if asked), None):
            raise ValueError(
                f"run_length: {self.run_length} does not go with these {field}: "
                "take costs, and budgets of so many calls or more"
            )

    @property
    def learns(self) -> bool:
        """Whether a switch is learned; without, one is fitted."""
        return bool(self.costs or self.budgets or self.averages)

    @property
    def bills(self) -> bool:
        """Whether a budget is in another unit than calls."""
        return any(budget_terms(given)[0] != "calls" for given in self.budgets)

    def _check_logs(self) -> None:
        if not self.logs and not self.levels:
            raise ValueError("levels: name at least one, or logs to learn from")
        if self.logs and self.max_steps is None:
            raise ValueError("max_steps: with logs, give the step limit of the logged agent")
        if self.random_episodes and (self.logs or not self.learns):
            raise ValueError("random_episodes: takes costs or budgets to learn, and no logs")
        if not self.logs and not self.random_episodes:
            return
        known, percentages = (PAST, False) if self.logs else ((*PAST, "classifier"), True)
        cannot = {
            "algorithm": self.algorithm != "dqn",
            "averages": bool(self.averages),
            "signals": not set(self.signals) <= set(known),
            "encoder": self.encoder == "hidden",
            "costs": MEASURED in self.costs,
            "budgets": any(isinstance(n, str) and not (percentages and n.endswith("%")) for n in self.budgets),
            "boundary_episodes": self.boundary_episodes > 0,
            "playoff_episodes": self.playoff_episodes > 0,
        }
        if field := next((name for name, asked in cannot.items() if asked), None):
            where = "logs, and no model asked" if self.logs else "random_episodes but these"
            raise ValueError(
                f"{field}: nothing is played to learn from {where}; take dqn, numbers, an encoder of text, signals of "
                f"the past ({', '.join(known)}), and no play"
            )

    @property
    def local(self) -> list[str]:
        """The models that run in engines of ours, each once."""
        return list(dict.fromkeys(m.model for m in self.models if not m.base_url and m.model != EXPERT))

    @property
    def single_models(self) -> dict[str, int]:
        """The policies in which one model acts throughout, by name, and its number."""
        last = len(self.models) - 1
        names = [ALWAYS_QUICK, *(f"always-{n}" for n in range(1, last)), ALWAYS_DEEPTHINK]
        return {name: n for n, name in enumerate(names)}

    @property
    def weights(self) -> list[float]:
        """Of each model's call, in c."""
        own = [0.0] + [1.0] * (len(self.models) - 1)
        return [w if m.weight is None else m.weight for m, w in zip(self.models, own, strict=True)]
