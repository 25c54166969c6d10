"""The fields of `[gateway]`: the switch in front of models that speak OpenAI's chat API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .base import ConfigModel, Positive
from .endpoint import EndpointFields, Temperature

FIXED = ("quick", "deepthink", "random")
"""Names of `gateway.switch` that are no learned switch."""


class GatewayModel(EndpointFields):
    """One of the models. A name alone, `"tiny-quick"`, is short for `{ model = "tiny-quick" }`."""

    timeout: float = Field(default=600.0, gt=0)
    """Seconds for a request, from connecting to the last byte."""
    retries: int = Field(default=2, ge=0)
    """How often a request is repeated before anything of its answer came."""
    context: Positive | None = None
    """Most tokens of a conversation and its answer, which no prompt exceeds."""
    max_tokens: Positive = 4096
    """Most tokens of an answer, whatever a client asks for; sent where it asks for no limit."""
    min_answer: Positive | None = None
    """Fewest tokens of an answer that are worth asking for: where what is left of a budget is too small for the whole
    limit, the limit is what fits, down to this. Without it the model is not asked then."""
    temperature: Temperature = None
    """Sent where a client sends none; `unset` sends none, whatever the client says."""
    tokenizer: str | None = None
    """Model whose tokenizer counts prompts, a directory or a hub id; without it each byte counts as a token."""

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.min_answer is not None and not self.base_url:
            raise ValueError("min_answer: a local model keeps to no limit of a request: it is for one with a base_url")
        if self.min_answer is not None and self.min_answer > self.max_tokens:
            raise ValueError("min_answer: must be at most max_tokens")
        return self


class Budget(ConfigModel):
    """Most of what may be spent. What is not named has no limit."""

    calls: Annotated[int, Field(ge=0)] | None = None
    """Steps of any model but the first."""
    tokens: Annotated[int, Field(ge=0)] | None = None
    """Tokens read and written, of all models."""
    usd: Annotated[float, Field(ge=0, le=1_000_000)] | None = None
    """Money, of all models, by their prices."""


class Autoscaling(ConfigModel):
    """Replicas of the gateway on Ray Serve (`--ray`), by Serve's own words."""

    min_replicas: Positive = 1
    """Fewest."""
    max_replicas: Positive = 4
    """Most."""
    target_ongoing_requests: Positive = 64
    """Requests that a replica should answer at a time; more of them start another."""
    num_cpus: float = Field(default=1.0, ge=0)
    """CPUs of each."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas: must be at least min_replicas")
        return self


class Gateway(ConfigModel):
    """The switch behind OpenAI's chat API, with budgets."""

    models: list[GatewayModel] = Field(min_length=2)
    """From the smallest (QUICK) to the largest (DEEPTHINK). `quick = A`, `deepthink = B` is short for two of them."""
    switch: str = "random"
    """Who decides: `RUN/POLICY`, a learned switch of a run; `quick` or `deepthink`, one model throughout; or `random`,
    which collects episodes to learn from."""
    share: float = Field(default=0.2, ge=0, le=1)
    """`random`: share of the steps that DEEPTHINK takes."""
    explore: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps whose model is drawn evenly from those that the budget still allows."""
    max_steps: Positive = 100
    """Steps of an episode, of which a switch sees the share that is used; no limit."""
    budget: Budget = Budget()
    """Of each session. Without `calls` a learned switch has the budget it was trained with."""
    daily: Budget = Budget()
    """Of all sessions of a key on one day (UTC)."""
    on_empty: Literal["quick", "refuse"] = "quick"
    """Once DEEPTHINK does not fit the budget: QUICK acts as long as it fits itself, or the request is refused (402)."""
    token_variable: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*$")
    """Environment variable with the bearer tokens that clients must send, several with commas between; each is a key
    with a daily budget of its own. Without it the gateway answers this machine only, and all clients are one key."""
    store: str | None = Field(default=None, min_length=1)
    """Where sessions are kept: `postgresql://HOST/NAME`, without a password; without it a file in the run directory."""
    answers_kept: float = Field(default=3600.0, gt=0)
    """Seconds after which an answer is no longer told again to who asks for it again."""
    keep_days: Annotated[float, Field(gt=0)] | None = None
    """Days without a request after which a session is removed from the store, with its budget; without it never."""
    record: str | None = Field(default=None, min_length=1)
    """Directory to which sessions are written as trajectories."""
    record_content: bool = True
    """False leaves what was said out of these files."""
    shadow: float = Field(default=0.0, ge=0, le=1)
    """Share of DEEPTHINK's steps after which QUICK is asked the same, for the record alone: a switch can be fitted to
    where the two differ. It is paid for out of the budgets, and left out where they do not allow it."""
    autoscaling: Autoscaling = Autoscaling()
    """Of replicas on Ray Serve."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        made = dict(given)
        pair = [made.pop(name) for name in ("quick", "deepthink") if name in made]
        if "models" in made and pair:
            raise ValueError("models: give either models, or quick and deepthink")
        if len(pair) == 1:
            raise ValueError("models: quick and deepthink go together")
        models = made.setdefault("models", pair)
        if isinstance(models, list):
            made["models"] = [{"model": m} if isinstance(m, str) else m for m in models]
        return made

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.budget.usd is not None or self.daily.usd is not None:
            last = self.models[-1]
            if not last.price_prompt and not last.price_completion:
                raise ValueError("models: a budget of money needs prices: give the last model's price_completion")
        if self.shadow and self.record is None:
            raise ValueError("shadow: what QUICK says goes to the record alone: give record")
        if self.store and not self.store.startswith("postgresql"):
            raise ValueError("store: must be postgresql://HOST/NAME")
        return self
