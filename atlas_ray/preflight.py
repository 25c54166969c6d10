"""Whether what a recipe names can be used: models, environments, enough episodes.

Asked before anything is written, and after :mod:`atlas_ray.stages.paths`, which needs no torch.
"""

from __future__ import annotations

import difflib

from . import envs
from .agents.rendering_chat import ChatRenderer, make_renderer
from .agents.rollout import TRAIN, env_spec, seed_block, start_episode, train_specs
from .engines.base import own_context
from .engines.endpoint import check_endpoint
from .engines.vllm_setup import check_installed as check_vllm
from .errors import InputError
from .models.config import longest
from .models.encoders import make_encoder
from .models.loading import adapted, load_tokenizer, look
from .models.split import check_split
from .recipe.loading import Recipe, Switch
from .recipe.select import TEXT_ENCODERS
from .rundir.tracking import check as check_trackers
from .selection.oracle_stage import check_oracle
from .selection.verified_stage import is_expert
from .stages.collect_file import holds_tool_calls
from .stages.collect_policy import AGENT, FIELD, collecting_policy, playing_recipe
from .stages.lacks import check_lacks
from .stages.table import STAGES, models
from .switching.players import check_players


def _check_switch(recipe: Recipe, settings: Switch) -> None:
    if settings.levels:
        check_players(recipe)
    if settings.encoder != "hidden":
        make_encoder(settings.encoder, settings.features)
    elif recipe.engine.kind == "vllm":
        raise InputError("vLLM gives no hidden states: read hashed words or a sentence encoder", field="switch.encoder")


def _check_collecting(recipe: Recipe) -> None:
    """The policy or the model that collects can play the levels here."""
    policy = collecting_policy(recipe)
    playing = playing_recipe(recipe, policy)
    assert playing.switch is not None
    try:
        if policy.number is None:
            _check_switch(playing, playing.switch)
        else:
            check_players(playing)
    except InputError as error:
        if recipe.collect and recipe.collect.agent:
            field = (error.field or AGENT).replace("switch.models.0", AGENT)
            raise InputError(error.message, error.path, error.line, field, error.code) from None
        raise InputError(f"{error.message} ({error.field})", policy.name, None, FIELD) from None


def _check_models(recipe: Recipe) -> None:
    """Every model can be had, from the hub too, and it is known how long a text may be."""
    tuned = recipe.finetune
    for field, name in models(recipe):
        config = look(name, field)
        if tuned and field == "finetune.base":
            longest(config, tuned.context, "finetune.context")
        if recipe.rounds and field == "switch.models.0.model":
            longest(config, recipe.rounds.finetune.context, "rounds.finetune.context")
        if field != "finetune.base" or recipe.evaluate:
            own_context(recipe.engine.context, config)
            if recipe.engine.kind == "vllm" and not field.endswith(".encoder"):
                check_split(config, max(1, int(recipe.engine.gpus)), name)


def _check_adapters(recipe: Recipe) -> None:
    """No adapter that is to be trained, and then played by vLLM, would lie over another: vLLM takes one at a time."""
    if recipe.engine.kind != "vllm":
        return
    tuned, rounds = recipe.finetune, recipe.rounds
    why = "would be trained over another adapter, and vLLM takes one at a time: "
    if tuned and tuned.lora and recipe.evaluate and not tuned.scratch and adapted(tuned.base):
        raise InputError(f"{why}merge that of {tuned.base}, or tune all weights", field="finetune.lora")
    if rounds and not recipe.switch and tuned and tuned.lora and rounds.count > 1 and rounds.tune_from == "before":
        raise InputError(f'{why}take "start", or tune all weights', field="rounds.tune_from")
    if rounds and rounds.finetune.lora and recipe.switch:
        if adapted(quick := recipe.switch.models[0].model):
            raise InputError(f"{why}merge that of {quick}, or tune all weights", field="rounds.finetune.lora")
        if rounds.count > 1 and rounds.tune_from == "before":
            raise InputError(f'{why}take "start", or tune all weights', field="rounds.tune_from")


def _check_habit(recipe: Recipe) -> None:
    """What an expert does at its first move can be done at the beginning of every level."""
    if recipe.collect is None or not recipe.collect.expert.habit:
        return
    for spec in train_specs(recipe).values():
        try:
            env = start_episode(spec, seed_block(recipe.seed, TRAIN)).env
        except envs.EnvironmentDiedError:
            continue  # the stage tries others, and counts why
        try:
            known = env.admissible()
        finally:
            envs.release(env)
        for action in recipe.collect.expert.habit if known else ():
            if action not in known:
                near = difflib.get_close_matches(action, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known)[:8])}"
                raise InputError(
                    f"{action!r} is no action at the beginning of {spec.id}; {hint}", field="collect.expert.habit"
                )


def _check_others(recipe: Recipe) -> None:
    """Who says what else to do in episodes of an agent, and who plays on, can be had.

    Raises:
        InputError: names the field.
    """
    if recipe.select is None or recipe.collect is None:
        return
    config, asked = recipe.select.verified, []
    if "verified" in recipe.select.selectors:
        if config.agent:
            check_endpoint(config.agent, "select.verified.agent", ("temperature",))
        if is_expert(config.alternative):
            asked.append("select.verified.alternative")
        else:
            check_endpoint(config.alternative, "select.verified.alternative", ("temperature",))
    if "advised" in recipe.select.selectors:
        asked.append("select.selectors")
    for field in asked:
        for level in recipe.collect.levels:
            if envs.environment_class(level).expert is envs.TextEnv.expert:
                raise InputError(f"{envs.full_id(level)} has no expert that could be asked", field=field)


def check(recipe: Recipe) -> None:
    """Refuse a recipe that cannot be run here.

    Raises:
        InputError: a tracker, an engine, a model, an encoder or an environment that cannot be had, a chat template that
            cannot be used, or not for the tool calls of a file, a setting that an environment refuses, a selector
            that replays what cannot be replayed, more expert episodes than an environment has, or a habit that an
            environment does not know.
    """
    check_trackers(recipe.trackers)
    if recipe.engine.kind == "vllm":
        check_vllm()
    if recipe.switch:
        _check_switch(recipe, recipe.switch)
    by_models = bool(recipe.collect and (recipe.collect.switch or recipe.collect.agent))
    if by_models:
        _check_collecting(recipe)
    check_oracle(recipe)
    _check_others(recipe)
    if recipe.select and "distilled" in recipe.select.selectors and recipe.select.distilled.encoder in TEXT_ENCODERS:
        make_encoder(recipe.select.distilled.encoder, 0, "select.distilled.encoder")
    _check_models(recipe)
    _check_adapters(recipe)
    if recipe.prompt == "chat":
        for name in dict.fromkeys(name for _, name in models(recipe)):
            make_renderer(load_tokenizer(name), recipe.style, "chat")
        if recipe.finetune and recipe.finetune.base and holds_tool_calls(recipe):
            ChatRenderer(load_tokenizer(recipe.finetune.base), recipe.style).check_tools()
    for field, name, split, want in (each for stage in STAGES for each in stage.environments(recipe)):
        spec = env_spec(recipe, name, None, split)
        plays = field == "collect.levels" and not by_models
        if plays and envs.environment_class(name).expert is envs.TextEnv.expert:
            raise InputError(f"{spec.id} has no expert: read its trajectories from a file", field=f"{field}.{name}")
        try:
            there = spec.episodes()
        except (envs.MissingExtraError, ValueError) as error:
            of_settings = str(error).partition(":")[0] in recipe.settings(name)
            raise InputError(f"{name}: {error}", None, None, "environments" if of_settings else field) from None
        if want > there:
            part = f"its split {split} has" if not spec.unbounded_episodes and "split" in spec.options else "it has"
            raise InputError(f"{want} episodes are asked for, {part} {there}", None, None, f"{field}.{name}")
    check_lacks(recipe)
    _check_habit(recipe)
