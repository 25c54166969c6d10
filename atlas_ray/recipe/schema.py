"""The fields of a recipe, each with its meaning, and what must hold between them. Imports neither torch nor Ray."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from .. import envs
from ..data.thinking import THINKING, tag_pair
from .base import (
    ConfigModel,
    Environment,
    GivenTwiceError,
    Positive,
    Renamed,
    current_name,
    distinct,
    with_current_keys,
)
from .collect import Collect
from .finetune import Finetune
from .gateway import Gateway
from .rounds import Rounds
from .select import MAKE_PAIRS, Select
from .sweep import Sweep, flat_space
from .switch import EXPERT, Switch

ResourceName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.-]*$")]
"""Of a custom resource of Ray."""


class Engine(ConfigModel):
    """What runs the models that play. `engine = "vllm"` is short for `engine = { kind = "vllm" }`."""

    kind: Literal["transformers", "vllm"] = "transformers"
    """`transformers`, `vllm` (an extra), or `auto`: vllm where it is installed."""
    actors: int = Field(default=0, ge=0)
    """Ray actors that hold the model for all workers; 0: every worker holds a model of its own."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """CPUs of such an actor, and threads of its model on a CPU."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one node for each engine. vLLM splits the model over several (tensor parallelism); a part of one is
    shared."""
    context: Positive | None = None
    """Most tokens of prompt and continuation; without it the model's own limit."""
    memory: float = Field(default=0.85, gt=0, le=1)
    """vLLM: share of each GPU's memory for weights and cache; at most `gpus` where engines share a GPU."""
    cache_gib: float = Field(default=1.0, gt=0)
    """vLLM on a CPU: GiB for the cache of prefixes."""
    timeout: float = Field(default=600.0, gt=0)
    """Seconds without an answer after which an engine actor is taken for hung and started again."""

    @model_validator(mode="before")
    @classmethod
    def _resolved(cls, given: Any) -> Any:
        made = {"kind": given} if isinstance(given, str) else given
        if isinstance(made, dict) and made.get("kind") == "auto":
            return {**made, "kind": "vllm" if find_spec("vllm") else "transformers"}
        return made

    @model_validator(mode="after")
    def _gpus_fit(self) -> Self:
        if self.gpus > 1 and (self.gpus != int(self.gpus) or self.kind != "vllm"):
            raise ValueError("gpus: more than one must be a whole number, and only vllm splits a model")
        if self.kind == "vllm" and 0 < self.gpus < 1 and self.memory > self.gpus:
            raise ValueError(
                f"memory: engines with gpus = {self.gpus:g} share a GPU, so each may take at most {self.gpus:g} of "
                f"its memory, not {self.memory:g}"
            )
        return self


class Act(ConfigModel):
    """How a model acts."""

    decide: Literal["score", "generate"] = "score"
    """`score` takes the likeliest admissible action; `generate` writes one, which may turn out to be none."""
    window: Annotated[int, Field(ge=0)] | None = None
    """Past steps that a model sees; without it all, so that the prompt only grows and stays in the cache."""
    thought_tokens: Positive = 16
    """Most tokens of a thought."""
    action_tokens: Positive = 32
    """Most tokens of an action that is generated."""
    thinking: list[str] = list(THINKING)
    """Tags of what is thought before an answer, which is no part of it: `<think>` (ends with `</think>`), or an opening
    and a closing tag with a space between."""

    @field_validator("thinking")
    @classmethod
    def _tags(cls, tags: list[str]) -> list[str]:
        for tag in tags:
            tag_pair(tag)
        return tags


class Evaluate(ConfigModel):
    """Scores on held-in and held-out environments."""

    held_in: list[Environment] = Field(min_length=1)
    """Environments whose training episodes were seen."""
    held_out: list[Environment] = []
    """Environments never trained on."""
    episodes: Positive = 50
    """Episodes an environment and model; their seeds are never those of training."""
    max_steps: Positive | None = None
    """Own step limit of an episode; without it the level's."""

    @model_validator(mode="after")
    def _unique(self) -> Self:
        distinct([*self.held_in, *self.held_out], "held_in and held_out")
        return self


class Placement(ConfigModel):
    """Groups of nodes, each by a custom Ray resource that its nodes have; without a name any node will do."""

    workers: ResourceName | None = None
    """Where the actors that play go, and the environment runners of the switch."""
    engines: ResourceName | None = None
    """Where engine actors go."""
    trainers: ResourceName | None = None
    """Where trainings go: of the models and of the switches."""

    def resource_request(self, who: Literal["workers", "engines", "trainers"]) -> dict[str, float]:
        """What one of them asks of custom resources. It is a place, not an amount, so it is as good as nothing."""
        group: str | None = getattr(self, who)
        return {group: 0.001} if group else {}


class Recipe(ConfigModel):
    """A whole run. Stages whose table is missing are left out."""

    renamed: ClassVar[dict[str, str]] = {"patience": "worker_timeout"}

    name: str = Field(pattern=r"^\w[\w .-]*$")
    """Name of the run; `runs/NAME` is its directory unless --out names another."""
    seed: int = Field(default=0, ge=0, lt=1000)
    """Seed of everything that is drawn."""
    workers: int = Field(default=2, ge=0)
    """Ray actors that play episodes; 0 plays inside this process."""
    num_envs: Positive = 32
    """Episodes an actor plays side by side."""
    worker_timeout: float = Field(default=3600.0, gt=0)
    """Seconds without a finished episode after which a worker counts as hung and is replaced."""
    max_lost_answers: float = Field(default=0.2, ge=0, le=1)
    """Most of a model's answers that may be none (a server that fails, an empty answer), as a share; above it the stage
    stops. Episodes without an answer are never scored."""
    style: Literal["react", "action"] = "react"
    """Thought and action, or actions only."""
    prompt: Literal["plain", "chat"] = "plain"
    """How a model is prompted: plain text, or its own chat template."""
    unknown_share: float = Field(default=0.05, ge=0, le=1)
    """Most tokens, of those that a model is trained on or reads, that its tokenizer may not know; more is an error."""
    worker_cpus: float = Field(default=1.0, gt=0)
    """CPUs of an actor that plays; less than 1 suits workers that wait for engine actors or slow environments."""
    engine: Engine = Engine()
    """What runs the models that play."""
    placement: Placement = Placement()
    """Groups of nodes of a cluster."""
    storage: str | None = Field(default=None, min_length=1)
    """Where the run is kept for other machines: a directory that they share, s3://BUCKET/PATH or gs://BUCKET/PATH."""
    agent: Act = Act()
    """How a model acts."""
    trackers: list[Literal["tensorboard", "wandb"]] = []
    """Where the numbers of `metrics.jsonl` go as well; wandb is an extra."""
    environments: dict[Environment, dict[str, str | int | float | bool]] = {}
    """Settings of an environment: `[environments."ScienceWorld/boil"]`, `simplifications = "easy"`."""
    collect: Collect | None = None
    """Episodes to learn from."""
    select: Select | None = None
    """Critical steps."""
    finetune: Finetune | None = None
    """Masked fine-tuning."""
    evaluate: Evaluate | None = None
    """Scores."""
    switch: Switch | None = None
    """LONDI."""
    rounds: Rounds | None = None
    """Rounds of switching and tuning, or of a model that learns from its own runs."""
    gateway: Gateway | None = None
    """The switch behind OpenAI's chat API; no stage, `atlas-ray gateway` reads it."""
    sweep: Sweep | None = None
    """Trials with other values, by Ray Tune."""

    @classmethod
    def with_current_keys(cls, given: dict[str, Any]) -> tuple[dict[str, Any], list[Renamed]]:
        """Data of a recipe with all keys and swept fields under their names of today, and what was renamed.

        Raises:
            GivenTwiceError: a key is given under both names.
        """
        made, found = with_current_keys(cls, given)
        sweep = made.get("sweep")
        if not isinstance(sweep, dict) or not isinstance(sweep.get("space"), dict):
            return made, found
        space = dict(flat_space(sweep["space"]))
        swept = [Renamed(field, name) for field in space if (name := current_name(cls, field)) != field]
        if not swept:
            return made, found
        keys = [Renamed(f"sweep.space.{key.old}", f"sweep.space.{key.new}") for key in swept]
        if twice := next((key for key, field in zip(keys, swept, strict=True) if field.new in space), None):
            raise GivenTwiceError(twice)
        space = {current_name(cls, field): value for field, value in space.items()}
        return {**made, "sweep": {**sweep, "space": space}}, [*found, *keys]

    @classmethod
    def current_field(cls, field: str) -> str:
        """A dotted field, which may be one of a sweep's space, by its name of today."""
        before, swept, name = field.partition("sweep.space.")
        return f"{swept}{current_name(cls, name)}" if swept and not before else current_name(cls, field)

    @model_validator(mode="before")
    @classmethod
    def _old_keys(cls, given: Any) -> Any:
        return cls.with_current_keys(given)[0] if isinstance(given, dict) else given

    @field_validator("storage")
    @classmethod
    def _no_secret(cls, place: str | None) -> str | None:
        if place and urlsplit(place).password is not None:
            raise ValueError("holds a key, and a recipe is written out: give keys in the environment")
        return place

    @model_validator(mode="after")
    def _settings_exist(self) -> Self:
        distinct(self.environments, "environments")
        for name, settings in self.environments.items():
            known = envs.arguments(name)
            for key in settings:
                if key not in known:
                    takes = f"it takes {', '.join(known)}" if known else "it takes none"
                    raise ValueError(f"environments.{name}: {envs.full_id(name)} has no setting {key!r}; {takes}")
        return self

    def settings(self, name: str) -> dict[str, str | int | float | bool]:
        """What `[environments]` says of an environment, however its name is written there."""
        full = envs.full_id(name)
        return next((v for k, v in self.environments.items() if envs.full_id(k) == full), {})

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if self.select and not self.collect:
            raise ValueError("select: needs a [collect] table")
        if self.finetune:
            own = self.finetune.pairs.files
            missing = {a.selector for a in self.finetune.arms if not (a.pairs and a.selector in own)}
            if missing and not self.select:
                raise ValueError(
                    "finetune: needs a [select] table, or arms with pairs = true on files of finetune.pairs.files alone"
                )
            if missing := missing - set(self.select.selectors if self.select else ()):
                raise ValueError(f"finetune.arms: select.selectors lacks {', '.join(sorted(missing))}")
            for number, arm in enumerate(self.finetune.arms):
                if arm.selector == "verified" and not arm.pairs:
                    raise ValueError(
                        f"finetune.arms.{number}.selector: verified marks turns of the agent that lost, which must "
                        "not be learnt: train on its pairs (pairs = true)"
                    )
                if arm.pairs and arm.selector not in (*MAKE_PAIRS, *own):
                    raise ValueError(
                        f"finetune.arms.{number}.pairs: {arm.selector} makes no pairs; {', '.join(MAKE_PAIRS)} does, "
                        "and finetune.pairs.files names files of your own"
                    )
            if self.finetune.validation and not self.evaluate and not (self.collect and self.collect.levels):
                raise ValueError("finetune.validation: needs levels to play, of [evaluate] or of [collect]")
        if self.evaluate and not self.finetune:
            raise ValueError("evaluate: needs a [finetune] table")
        if self.switch and self.engine.kind == "vllm" and not self.engine.actors:
            raise ValueError("engine.actors: vllm holds one model a process, and the switch plays several")
        if self.switch and self.switch.logs and (self.sweep or self.rounds):
            raise ValueError("switch.logs: a sweep and rounds learn at play; remove one of the two")
        if self.switch and self.switch.random_episodes and self.sweep:
            raise ValueError("switch.random_episodes: a sweep learns at play; remove one of the two")
        if self.engine.actors and not self.workers:
            raise ValueError("engine.actors: serve workers, and workers is 0")
        if self.evaluate and self.collect:
            trained = {envs.full_id(level) for level in self.collect.levels}
            for level in self.evaluate.held_out:
                if envs.full_id(level) in trained:
                    raise ValueError(f"evaluate.held_out: {level!r} is among collect.levels")
        return self

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        if not self.rounds:
            return self
        if not self.switch:
            self._own_rounds_fit(self.rounds)
            return self
        if self.collect and self.collect.switch:
            raise ValueError(
                "collect.switch: [rounds] collects with its own switches, round by round: remove one of the two"
            )
        if not self.switch.learns:
            raise ValueError("switch.costs: [rounds] learns switches: name a cost, budget or average")
        quick = self.switch.models[0]
        if quick.model == EXPERT or quick.base_url:
            what = "an expert" if quick.model == EXPERT else "behind an endpoint"
            raise ValueError(f"switch.models: the first is {what}, so [rounds] cannot tune it: name a model to load")
        return self

    def _own_rounds_fit(self, rounds: Rounds) -> None:
        """Without a switch a model learns from its own runs.

        Raises:
            ValueError: what that needs is missing, or something does not go with it.
        """
        collect, select, tuning = self.collect, self.select, self.finetune
        if not (collect and collect.agent and select and tuning and self.evaluate):
            raise ValueError(
                "rounds: needs a [switch] table; or, for a model that learns from its own runs, collect.agent, "
                "[select], [finetune] and [evaluate]"
            )
        for name in rounds.of_a_switch:
            instead = {"episodes": "collect.levels", "arms": "finetune.arms", "finetune": "[finetune]"}.get(name)
            hint = f": {instead} says it for a model's own runs" if instead else ""
            raise ValueError(f"rounds.{name}: is of rounds of a switch, and there is no [switch] table{hint}")
        if collect.agent.base_url:
            raise ValueError("collect.agent: is behind an endpoint, so [rounds] cannot tune it: name a model to load")
        if tuning.scratch or collect.agent.model != tuning.base:
            other = "a new model" if tuning.scratch else repr(tuning.base)
            raise ValueError(
                f"finetune.base: [rounds] tunes the model that plays, collect.agent ({collect.agent.model!r}), and "
                f"this is {other}"
            )
        for field, files in (("select.files", select.files), ("finetune.pairs.files", tuning.pairs.files)):
            if files:
                raise ValueError(f"{field}: {', '.join(files)} would be the same in every round of [rounds]: leave out")
