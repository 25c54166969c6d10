"""A policy of another run, or a model, that collects: who it is, and whether this recipe lets it play as it learned to.

Looked at without torch or Ray.
"""

from __future__ import annotations

from pathlib import Path

from .. import envs
from ..data.results import ALWAYS_QUICK
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.of_run import RunPolicy, policy_of
from ..recipe.switch import Switch, SwitchModel
from ..rundir.layout import RunLayout
from ..switching.policy import SwitchPolicy
from .same_models import policy_models, refuse_other_models

FIELD, AGENT = "collect.switch", "collect.agent"


def collecting_policy(recipe: Recipe) -> RunPolicy:
    """The policy by which a recipe collects; an agent is one whose only model acts throughout, of this very recipe.

    Raises:
        InputError: it is not here.
    """
    config = recipe.collect
    assert config is not None
    if config.agent is None:
        assert config.switch is not None
        return policy_of(config.switch, FIELD)
    model = SwitchModel.model_validate(config.agent.model_dump())
    pair = Switch(
        models=[model, model],
        levels=list(config.levels),
        costs=[0.0],
        unit="seconds" if model.base_url else "flops",  # the FLOPs behind an endpoint are unknown
    )
    alone = pair.model_copy(update={"models": [model]})
    return RunPolicy(Path(), recipe.model_copy(update={"switch": alone}), ALWAYS_QUICK, 0)


def source_of(recipe: Recipe, policy: RunPolicy) -> str:
    """How trajectories name who collects: a policy by the name of its run's recipe and its own, an agent by itself."""
    assert recipe.collect is not None
    agent = recipe.collect.agent
    return agent.source if agent else f"{policy.recipe.name}/{policy.name}"


def playing_recipe(recipe: Recipe, policy: RunPolicy, *levels: str) -> Recipe:
    """A recipe by which the policy's models play these levels, or all that are collected.

    What they see and how they act is of the policy's run: models, encoder and signals, style, prompt and ``[agent]``.
    Environments, step limit, and where and how many at a time are of the collecting recipe.
    """
    config = recipe.collect
    assert config is not None
    own = {
        "models": policy.models,
        "levels": list(levels or config.levels),
        "max_steps": config.max_steps,
        "num_envs": recipe.num_envs,
        "env_runners": 0,
    }
    seen = {name: getattr(policy.recipe, name) for name in ("style", "prompt", "agent")}
    return recipe.model_copy(update={**seen, "switch": policy.settings.model_copy(update=own)})


def check_collecting(recipe: Recipe) -> None:
    """Refuse a recipe whose policy is not here or would play otherwise than it learned to, if a policy collects.

    Raises:
        InputError: a run, policy or model is missing or has changed; or style, prompt, settings of an environment, or a
            learned switch's step limit are not those of the run.
    """
    config = recipe.collect
    if config is None or config.switch is None:
        return
    policy = collecting_policy(recipe)
    try:
        refuse_other_models(policy.run_dir, policy_models(policy))
    except InputError as error:
        raise InputError(f"{error.message} ({error.field})", config.switch, None, FIELD, error.code) from None
    theirs = policy.recipe
    for name in ("style", "prompt"):
        _same(name, config.switch, getattr(theirs, name), getattr(recipe, name))
    played = {envs.full_id(level) for level in policy.settings.levels}
    for level in config.levels:
        if envs.full_id(level) in played or theirs.settings(level):
            _same(f"environments.{level}", config.switch, theirs.settings(level), recipe.settings(level))
    if policy.directory is not None:
        # it sees the share of the steps that is used
        _same("collect.max_steps", config.switch, policy.settings.max_steps, config.max_steps)
        _check_switch(policy)
    if recipe.engine.kind == "vllm" and not recipe.engine.actors and len(policy.local) > 1:
        raise InputError("vllm holds one model a process, and the switch plays several", field="engine.actors")


def refuse_changed_switch(recipe: Recipe, layout: RunLayout) -> None:
    """Refuse to go on collecting with another switch than that with which it was begun.

    Raises:
        InputError: the run's switch was trained again since.
    """
    policy = collecting_policy(recipe)
    begun = layout.collecting_switch
    if policy.directory is None or not begun.is_dir():
        return
    if _content(SwitchPolicy.load(policy.directory)) != _content(SwitchPolicy.load(begun)):
        raise InputError(
            f"is another switch than that with which {layout.root} began to collect: name another --out",
            policy.directory,
            None,
            FIELD,
            "other_model",
        )


def _content(switch: SwitchPolicy) -> tuple[object, dict[str, bytes]]:
    return switch.config, {name: tensor.tobytes() for name, tensor in switch.tensors.items()}


def _check_switch(policy: RunPolicy) -> None:
    assert policy.directory is not None
    try:
        models = SwitchPolicy.load(policy.directory).config.models
    except InputError as error:
        raise InputError(error.message, error.path, error.line, FIELD) from None
    if models != len(policy.models):
        raise InputError(
            f"the switch chooses among {models} models, and its run names {len(policy.models)}",
            policy.directory,
            None,
            FIELD,
        )


def _same(field: str, run: str, theirs: object, own: object) -> None:
    if theirs != own:
        raise InputError(
            f"is {own!r} here and {theirs!r} in the run of collect.switch ({run}): give the same, for its models "
            "learned to act on that",
            field=field,
        )
