"""What of a run can be served, and its sessions with the models in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from ..agents.spec import agent_spec
from ..cluster.worker_state import WorkerState
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.switch import EXPERT
from ..rundir.files import read_json
from ..rundir.layout import RunLayout
from ..stages.same_models import models_and_encoders, refuse_other_models
from ..switching.baselines import Always
from ..switching.decision_cache import DecisionCache
from ..switching.evaluate import Policy
from ..switching.players import close_players, open_players
from ..switching.policies import single_model_policies
from ..switching.policy import CONFIG, SwitchPolicy
from .sessions import SessionManager


def policies(recipe: Recipe, run_dir: Path) -> dict[str, Path | int]:
    """What of a run can be served: directories of switches and of tuned models, numbers of the switch's own models."""
    layout = RunLayout(run_dir)
    marks = [*layout.checkpoint_records, *sorted(layout.checkpoints.glob(f"switch-*/{CONFIG}"))]
    found: dict[str, Path | int] = {p.parent.name: p.parent for p in marks if not p.parent.name.startswith(".")}
    if recipe.switch:
        models = recipe.switch.models
        found |= {c.name: c.action for c in single_model_policies(recipe.switch) if models[c.action].model != EXPERT}
    return found


@contextmanager
def open_sessions(run_dir: Path, name: str | None = None, max_sessions: int | None = None) -> Iterator[SessionManager]:
    """Serve one of :func:`policies` as long as the block lasts, with the models in this process.

    Args:
        run_dir: a run directory.
        name: of the policy; None takes the only switch, or the only tuned model where there is no switch.
        max_sessions: episodes at a time; by default what the recipe has.

    Raises:
        InputError: it is no run directory of this version, has no such policy, one of its models plays in environments
            of ours only, or is another here than in the run.
    """
    resolved = RunLayout(run_dir).recipe
    if not resolved.is_file():
        raise InputError("is not a run directory: it has no recipe.resolved.json", run_dir)
    try:
        recipe = Recipe.model_validate(read_json(resolved))
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError("the run was made by a version with other fields", resolved, None, field) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}", resolved) from None
    known = policies(recipe, run_dir)
    name = name or _only(run_dir, known)
    if name not in known:
        raise InputError(f"has no policy {name!r}; it has {', '.join(known) or 'none'}", run_dir)
    what, settings = known[name], recipe.switch
    with ExitStack() as stack:
        if isinstance(what, Path) and not what.name.startswith("switch-"):
            spec = replace(agent_spec(recipe, str(what)), slots=max_sessions or recipe.num_envs)
            engine = spec.new_engine(0)
            stack.callback(engine.close)
            yield SessionManager(name, Always(0), [spec.new_agent(engine)], [name])
            return
        if settings is None:
            raise InputError(f"{name} is a switch, and the run's recipe has no [switch] table", run_dir)
        chosen = settings.models if isinstance(what, Path) else [settings.models[what]]
        if EXPERT in [model.model for model in chosen]:
            raise InputError(f"{name} asks the environment's expert, who plays in environments of ours only", run_dir)
        names = {model.model for model in chosen} | ({settings.encoder} if isinstance(what, Path) else set())
        refuse_other_models(run_dir, (said for said in models_and_encoders(recipe, "switch") if said[1] in names))
        playing = settings.model_copy(update={"models": chosen, "num_envs": max_sessions or settings.num_envs})
        state = WorkerState()
        stack.callback(close_players, state)
        players = open_players(recipe.model_copy(update={"switch": playing}), state)
        policy: Policy = SwitchPolicy.load(what) if isinstance(what, Path) else Always(0)
        budget = policy.config.budget if isinstance(policy, SwitchPolicy) else None
        decision_cache = DecisionCache() if settings.cache else None
        yield SessionManager(name, policy, players, [model.model for model in chosen], budget, decision_cache)


def _only(run_dir: Path, known: Mapping[str, Path | int]) -> str:
    learned = [name for name, what in known.items() if isinstance(what, Path)]
    switches = [name for name in learned if name.startswith("switch-")]
    choice = switches or learned
    if len(choice) != 1:
        raise InputError(f"say which policy: {', '.join(known) or 'the run has none yet'}", run_dir)
    return choice[0]
