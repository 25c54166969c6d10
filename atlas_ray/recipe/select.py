"""The fields of `[select]`: which steps are critical, by whom."""

from __future__ import annotations

import difflib
import math
import re
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import ConfigModel, Positive
from .endpoint import EndpointFields
from .switch import EXPERT

SELECTORS = (
    "all",
    "random",
    "non-critical",
    "value",
    "deviation",
    "perplexity",
    "uniform",
    "last",
    "oracle",
    "calls",
    "distilled",
    "mistakes",
    "entropy",
    "verified",
    "successes",
    "advised",
)
ASK_ORACLE = ("oracle", "mistakes")
"""Selectors that ask the oracle."""
BY_BASE = ("perplexity", "entropy")
"""Selectors that the model to be tuned scores."""
MAKE_PAIRS = ("verified",)
"""Selectors that leave pairs of turns beside their marks."""
KINDS = ("intersection", "union", "rank-mean")
"""Of ensembles."""
MATCHED = ("random", "non-critical")
"""Of controls that draw as many steps of each trajectory as another selector marked."""
_OWN = re.compile(r"[a-z][a-z0-9-]*")


def is_own(name: str) -> bool:
    """Whether a name can be one of a user's own annotations or pairs: small letters, digits and hyphens."""
    return bool(_OWN.fullmatch(name))


def matched(selector: str) -> str | None:
    """The selector whose number of steps a control draws, ``value`` of ``random_value``; None for any other."""
    kind, _, member = selector.partition("_")
    return member if member and kind in MATCHED else None


def members(selector: str) -> tuple[str, ...]:
    """The selectors that an ensemble joins, ``union_value_oracle``, or that a size-matched control follows.

    None for a single selector.
    """
    if member := matched(selector):
        return (member,)
    kind, *joined = selector.split("_")
    return tuple(joined) if kind in KINDS else ()


def with_members(selector: str) -> tuple[str, ...]:
    """A selector and all that it is made from, its members' own members too."""
    return (selector, *(part for member in members(selector) for part in with_members(member)))


def _selector(name: str) -> str:
    joined = members(name)
    if (member := matched(name)) is not None:
        if not members(member) and not is_own(member):
            raise ValueError(f"{name!r} must name the one selector that it follows, as in random_value")
        _selector(member)
    elif joined or name in KINDS:
        if len(joined) < 2 or len(set(joined)) < len(joined):
            raise ValueError(f"{name!r} must name two or more different selectors, as in union_value_oracle")
        for member in joined:
            _selector(member)
    elif not is_own(name):
        raise ValueError(f"{name!r} is no name of a selector: small letters, digits and hyphens")
    return name


Selector = Annotated[str, AfterValidator(_selector)]


OF_ASKING = (
    "batch",
    "concurrency",
    "max_reprompts",
    "max_tokens",
    "price_completion",
    "price_prompt",
    "send_schema",
    "stop_after",
)
"""What of :class:`Oracle` may change besides while a run goes on: valid answers stay what they are."""


class Oracle(EndpointFields):
    """The model that reads whole trajectories (ATLaS). With `base_url` a chat endpoint, else a model of `[engine]`."""

    renamed: ClassVar[dict[str, str]] = {"reasks": "max_reprompts"}

    model: str = "smollm2-135m"
    """A shipped name, a directory or a hub id; with `base_url` the name by which the server knows it."""
    concurrency: Positive = 8
    """Most requests to the server at a time."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds for a request."""
    context: Positive = 32_768
    """Most tokens of a conversation and its answer; a longer trajectory is read in windows."""
    max_tokens: Positive = 4096
    """Most tokens of an answer, thoughts of a reasoning model included."""
    max_reprompts: int = Field(default=2, ge=0)
    """How often an answer that is not valid is asked for again; then the trajectory stays unannotated."""
    batch: Positive = 16
    """Trajectories asked about at a time."""
    send_schema: bool = True
    """False where the server refuses a JSON schema; answers are checked in any case."""
    stop_after: int = Field(default=5, ge=0)
    """So many answers in a row that are refused alike, or are none for the same reason, end it before more is paid; 0
    never does."""


TEXT_ENCODERS = ("hashing", "minilm")
"""Of :class:`Distill`, that are no names of models."""


class Distill(ConfigModel):
    """A head that learns what another selector marked and marks other episodes like it (ours)."""

    teacher: str | None = Field(default=None, pattern=r".+/[^/]+")
    """Whose marks it learns: a run and one of its selectors, `runs/marked/value`; a relative path counts from the
    working directory."""
    encoder: str = Field(default="tiny-quick", min_length=1)
    """What reads the steps: a model, by its hidden states; `minilm` (an extra), or `hashing` for hashed words."""


def _named(given: Any) -> Any:
    return {"model": given} if isinstance(given, str) else given


NamedModel = Annotated[EndpointFields, BeforeValidator(_named)]
"""A model to load or behind an endpoint; its name alone is short for the table."""


class Verify(ConfigModel):
    """Steps of failed episodes at which another action turns them into successes (after CSO, arXiv 2602.03412)."""

    propose: Selector = "all"
    """Whose steps are tried: another selector's marks, of `mistakes` the steps that it calls so, or `all`."""
    most_steps: Positive = 5
    """Most steps that are tried per episode; of more, as many are drawn."""
    alternative: NamedModel = EndpointFields(model=EXPERT)
    """Who does otherwise there: `expert`, the environment's own where it can advise, or a model like `collect.agent`,
    DEEPTHINK say."""
    agent: NamedModel | None = None
    """Who plays on; without it `collect.agent`, and where a file is read `select.model`."""
    rollouts: Positive = 5
    """Roll-outs behind each of the two actions of a step."""
    wins: Positive = 3
    """So many of them have to succeed behind the other action."""
    significance: float = Field(default=0.05, gt=0, lt=1)
    """Level of the one-sided exact test that the other action succeeds more often than the agent's own."""

    @model_validator(mode="after")
    def _can_verify(self) -> Self:
        if self.wins > self.rollouts:
            raise ValueError(f"wins: {self.wins} of {self.rollouts} roll-outs cannot succeed")
        best = 1 / math.comb(2 * self.rollouts, self.rollouts)
        if best > self.significance:
            raise ValueError(
                f"rollouts: {self.rollouts} verify nothing, since {self.rollouts} successes against none have "
                f"p = {best:.3g}; take more, or a significance of at least that"
            )
        if self.agent and self.agent.model == EXPERT and not self.agent.base_url:
            raise ValueError("agent: names a model; the environment's expert is for alternative")
        return self


class Select(ConfigModel):
    """Which steps are critical."""

    selectors: list[Selector] = Field(default=["all", "random", "non-critical", "value"], min_length=1)
    """all, random, non-critical, value, deviation, perplexity, uniform, last, oracle, calls, distilled, mistakes,
    entropy, verified, successes, advised, a name of `files`, or several joined by union_, intersection_ or rank-mean_:
    `union_value_oracle`. `random_value` and `non-critical_value` draw as many steps of each trajectory as value
    marked, of all or of those it left."""
    fraction: float = Field(default=0.3, gt=0, le=1)
    """At most this share of a trajectory's steps is selected (ATLaS: 0.3); `all`, `successes`, `calls`, `mistakes`,
    `advised` and `verified` have no such cap."""
    rest_of: Selector = "value"
    """The selector from whose rest `non-critical` draws."""
    files: dict[str, str] = {}
    """Annotations of your own: the name of a selector, and its file, here or on the hub as in `collect.file`."""
    model: str = "tiny-quick"
    """value: the model whose counterfactual roll-outs estimate values. deviation: the one whose moves are weighed.
    verified: who plays on where a file is read."""
    play_on: str | None = None
    """deviation: the model that plays on where the environment's expert cannot, DEEPTHINK say; without it `model`."""
    rollouts: Positive = 5
    """value: roll-outs a step (ATLaS: 5)."""
    horizon: Positive = 16
    """value: most steps of a roll-out."""
    temperature: float = Field(default=1.0, gt=0)
    """value: sampling temperature of the roll-outs. verified: that of an agent that is greedy."""
    threshold: float = Field(default=0.0, ge=0)
    """value: a step is critical where the value jumps by more than this."""
    oracle: Oracle = Oracle()
    """oracle, mistakes: who is asked, and how."""
    distilled: Distill = Distill()
    """distilled: whose marks are learnt, and from what."""
    verified: Verify = Verify()
    """verified: which steps are tried, how, and when that counts."""
    start_after: list[Selector] = []
    """Selectors to test without training: the untuned model goes on behind their steps, and behind random ones."""
    start_after_trajectories: Positive = 100
    """Most trajectories of this test."""
    start_after_steps: Positive = 20
    """Most steps of the model behind a start."""

    @model_validator(mode="after")
    def _all_there(self) -> Self:
        for name in self.files:
            if name in SELECTORS or not is_own(name):
                raise ValueError(f"files: {name!r} must be a new name of small letters, digits and hyphens")
        known = {*SELECTORS, *self.files}
        for name in self.selectors:
            for member in members(name) or (name,):
                if member not in known and not members(member):
                    near = difflib.get_close_matches(member, known, n=1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
                    raise ValueError(f"selectors: no selector is called {member!r}; {hint}")
                if member not in self.selectors:
                    how = "follows" if matched(name) else "joins"
                    raise ValueError(f"selectors: {name} {how} {member}, which must be named too")
        if "distilled" in self.selectors and self.distilled.teacher is None:
            raise ValueError("distilled.teacher: name whose marks it learns, RUN/SELECTOR")
        if len(set(self.selectors)) != len(self.selectors):
            raise ValueError("selectors: the same selector stands twice")
        if missing := set(self.start_after) - set(self.selectors):
            raise ValueError(f"start_after: selectors lacks {', '.join(sorted(missing))}")
        if "non-critical" in self.selectors and self.rest_of not in self.selectors:
            raise ValueError(f"selectors: non-critical needs {self.rest_of}, from whose rest it draws")
        if "non-critical" in with_members(self.rest_of):
            raise ValueError("rest_of: non-critical cannot draw from its own rest")
        if "verified" in self.selectors:
            self._check_proposer(self.verified.propose)
        return self

    def _check_proposer(self, name: str) -> None:
        if name != "all" and name not in self.selectors:
            raise ValueError(f"verified.propose: selectors lacks {name}")
        behind = with_members(name)
        if "verified" in (*behind, *(with_members(self.rest_of) if "non-critical" in behind else ())):
            raise ValueError("verified.propose: cannot propose the steps of verified itself")
