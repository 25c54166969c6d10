"""What of a run can be served, and its sessions with the models in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from ..agents.spec import agent_spec
from ..cluster.worker_state import WorkerState
from ..errors import InputError
from ..recipe.loading import Recipe
from ..recipe.of_run import RunPolicy, only_switch, recipe_of, switch_policies
from ..rundir.layout import RunLayout
from ..stages.same_models import policy_models, refuse_other_models
from ..switching.baselines import Always
from ..switching.decision_cache import DecisionCache
from ..switching.evaluate import Policy
from ..switching.players import close_players, open_players
from ..switching.policy import SwitchPolicy
from .sessions import SessionManager


def policies(recipe: Recipe, run_dir: Path) -> dict[str, Path | RunPolicy]:
    """What of a run can be served: directories of tuned models, switches, and the switch's own models."""
    tuned = {path.parent.name: path.parent for path in RunLayout(run_dir).checkpoint_records}
    found: dict[str, Path | RunPolicy] = {name: path for name, path in tuned.items() if not name.startswith(".")}
    own = switch_policies(recipe, run_dir)
    return found | {name: policy for name, policy in own.items() if policy.number is None or not policy.asks_expert}


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
    recipe = recipe_of(run_dir)
    known = policies(recipe, run_dir)
    name = name or _only(run_dir, known)
    if name not in known:
        raise InputError(f"has no policy {name!r}; it has {', '.join(known) or 'none'}", run_dir)
    served = known[name]
    with ExitStack() as stack:
        if isinstance(served, Path):
            spec = replace(agent_spec(recipe, str(served)), slots=max_sessions or recipe.num_envs)
            engine = spec.new_engine(0)
            stack.callback(engine.close)
            yield SessionManager(name, Always(0), [spec.new_agent(engine)], [name])
            return
        if served.asks_expert:
            raise InputError(f"{name} asks the environment's expert, who plays in environments of ours only", run_dir)
        refuse_other_models(run_dir, policy_models(served))
        chosen, settings = served.models, served.settings
        playing = settings.model_copy(update={"models": chosen, "num_envs": max_sessions or settings.num_envs})
        state = WorkerState()
        stack.callback(close_players, state)
        players = open_players(recipe.model_copy(update={"switch": playing}), state)
        policy: Policy = SwitchPolicy.load(served.directory) if served.directory else Always(0)
        learned = policy.config if isinstance(policy, SwitchPolicy) else None
        budget, unit, run = (learned.budget, learned.unit, learned.run_length) if learned else (None, "calls", 1)
        decision_cache = DecisionCache() if settings.cache else None
        names = [model.model for model in chosen]
        yield SessionManager(name, policy, players, names, budget, decision_cache, unit=unit, run=run)


def _only(run_dir: Path, known: Mapping[str, Path | RunPolicy]) -> str:
    tuned = [name for name, served in known.items() if isinstance(served, Path)]
    switches = [served for served in known.values() if isinstance(served, RunPolicy) and served.number is None]
    choice = only_switch(switches) if switches else tuned[0] if len(tuned) == 1 else None
    if choice is None:
        raise InputError(f"say which policy: {', '.join(known) or 'the run has none yet'}", run_dir)
    return choice
