"""From a recipe or a run to a gateway: what it names is looked at, then opened."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe.endpoint import EndpointFields
from ..recipe.gateway import Gateway, GatewayModel
from ..recipe.loading import Recipe
from ..recipe.of_run import only_switch, recipe_of, switch_policies
from ..recipe.switch import EXPERT
from ..rundir.layout import RunLayout
from ..stages.same_models import policy_models, refuse_other_models
from ..switching.policy import SwitchPolicy
from .admission import Admission, Counter
from .answering import Answering
from .deciding import Decider
from .local import LocalModel, Plays
from .metrics import Metrics
from .recording import Recorder
from .store import Store
from .upstream import HttpUpstream, Upstream

_SEPARATOR = 16
"""Tokens between a thought and an action."""


def recipe_of_gateway(run_dir: Path, name: str | None = None) -> Recipe:
    """A run's recipe with the ``[gateway]`` table of one of its policies: its models, and who decides.

    What else a ``[gateway]`` table of the run says stays as it is.

    Args:
        run_dir: a run directory.
        name: of the policy; None takes the only switch.

    Raises:
        InputError: it is no run, has no such policy, or one of its models cannot stand behind a gateway.
    """
    recipe = recipe_of(run_dir)
    known = switch_policies(recipe, run_dir)
    name = name or only_switch(known.values())
    if name is None or name not in known:
        what = f"has no policy {name!r}" if name else "has no single switch: say which policy"
        raise InputError(f"{what}; it has {', '.join(known) or 'none'}", run_dir)
    policy = known[name]
    table = policy.settings
    if any(model.model == EXPERT for model in table.models):
        raise InputError("one of its models is the environment's expert, who plays in environments of ours", run_dir)
    if any(model.catch_up is not None or model.window is not None for model in table.models):
        raise InputError("one of its models has a window or catch_up, and here it reads what it is sent", run_dir)
    refuse_other_models(run_dir, policy_models(policy))
    models = [{field: getattr(model, field) for field in EndpointFields.model_fields} for model in table.models]
    if policy.directory is not None and SwitchPolicy.load(policy.directory).config.unit != "calls":
        # what is reserved for a local model is then near what it takes
        longest = recipe.agent.thought_tokens + recipe.agent.action_tokens + _SEPARATOR
        for model, its in zip(table.models, models, strict=True):
            if not model.base_url:
                its |= {"tokenizer": model.model, "max_tokens": longest}
    switch = f"{run_dir}/{name}"
    if policy.number is not None:
        ends = {0: "quick", len(models) - 1: "deepthink"}
        if policy.number not in ends:
            raise InputError(f"{name} is neither the first nor the last model", run_dir)
        switch = ends[policy.number]
    given = recipe.gateway.model_dump() if recipe.gateway else {"max_steps": table.max_steps or 100}
    made: dict[str, Any] = {"models": models, **given, "switch": switch}
    return recipe.model_copy(update={"gateway": Gateway.model_validate(made)})


@contextmanager
def open_gateway(
    recipe: Recipe, run_dir: Path, player: Callable[[GatewayModel], Plays] | None = None
) -> Iterator[tuple[Answering, Recorder]]:
    """The parts of a gateway as long as the block lasts.

    Args:
        recipe: one with a ``[gateway]`` table.
        run_dir: where its store lies, unless the table names another.
        player: of a local model; by default it plays in this process.

    Raises:
        InputError: a model, the switch, a tokenizer or the store cannot be had; names the field.
    """
    settings = _settings(recipe)
    decider = Decider(settings, recipe.seed, recipe.style)
    counters = [_counter(model.tokenizer, number) for number, model in enumerate(settings.models)]
    with ExitStack() as opened:
        upstreams = _upstreams(recipe, settings, player, opened)
        store = Store(settings.store or RunLayout(run_dir).gateway_store)
        opened.callback(store.close)
        admission = Admission(settings, store, decider, counters)
        answering, recorder = Answering(admission, upstreams, Metrics()), Recorder(settings, store)
        # a garbage collection that looks at all that was imported until now lets everybody wait for 50 ms
        gc.freeze()
        opened.callback(gc.unfreeze)
        yield answering, recorder


def check_gateway(recipe: Recipe) -> None:
    """Refuse what :func:`open_gateway` would, as far as that can be told without loading a model or opening a store.

    Raises:
        InputError: names the field.
    """
    settings = _settings(recipe)
    Decider(settings, recipe.seed, recipe.style)
    for number, model in enumerate(settings.models):
        if model.base_url:
            HttpUpstream(model, _where(number))


def _settings(recipe: Recipe) -> Gateway:
    if recipe.gateway is None:
        raise InputError("the recipe has no [gateway] table", code="missing_table")
    return recipe.gateway


def _where(number: int) -> str:
    return f"gateway.models.{number}"


def _upstreams(
    recipe: Recipe, settings: Gateway, player: Callable[[GatewayModel], Plays] | None, opened: ExitStack
) -> list[Upstream]:
    if player is None and not all(model.base_url for model in settings.models):
        from .player import Player  # imports torch

        if recipe.engine.kind == "vllm" and sum(not model.base_url for model in settings.models) > 1:
            raise InputError("several models in vLLM need a process each: say --ray", field="engine.kind")
        thread = ThreadPoolExecutor(1, thread_name_prefix="models")
        opened.callback(thread.shutdown)
        player = partial(Player, recipe, thread)
    found: list[Upstream] = []
    for number, model in enumerate(settings.models):
        if model.base_url:
            found.append(HttpUpstream(model, _where(number)))
        elif player is not None:
            found.append(LocalModel(model, recipe.style, player(model)))
    return found


def _counter(tokenizer: str | None, number: int) -> Counter | None:
    if tokenizer is None:
        return None
    from ..models.loading import load_tokenizer

    try:
        made = load_tokenizer(tokenizer)
    except InputError as error:
        raise InputError(error.message, field=f"{_where(number)}.tokenizer") from None
    return lambda text: len(made(text, add_special_tokens=False)["input_ids"])
