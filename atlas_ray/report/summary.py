"""What was run, in one sentence."""

from __future__ import annotations

from ..recipe.switch import DOUBTS
from .run import Run


def summary(run: Run) -> str:
    """One sentence on what was run; of a sweep each trial is one arm, or one switch."""
    recipe, results, swept = run.recipe, run.results, run.layout.sweep_json.is_file()
    if recipe is None:
        counts = [f"{len(results.atlas.arms)} arms"] if results and results.atlas else []
        counts += [f"{len(results.londi.policies)} switch policies"] if results and results.londi else []
        scored = f"{' and '.join(counts) or 'No models'} were scored"
        return f"{scored}; recipe.resolved.json is missing, so no more can be told."
    parts = []
    if recipe.collect:
        levels = recipe.collect.levels
        agent = recipe.collect.agent
        player = agent.source if agent else recipe.collect.switch
        by = f" played by {player}" if player else ""
        parts.append(f"{sum(levels.values()):,} {'' if by else 'expert '}episodes of {', '.join(levels)}{by}")
    if recipe.select:
        parts.append(f"at most {recipe.select.fraction:.0%} of each episode's steps marked as critical")
    if recipe.finetune:
        f = recipe.finetune
        base = "a new model" if f.scratch else f.base
        each = "in each trial" if swept else f"in {len(f.arms)} arms and {len(f.seeds)} seeds each"
        parts.append(f"{base} tuned {each}")
    if recipe.evaluate:
        e = recipe.evaluate
        parts.append(
            f"scored on {len(e.held_in)} held-in and {len(e.held_out)} held-out levels of {e.episodes} episodes"
        )
    if recipe.switch:
        s = recipe.switch
        count = (len(s.costs) + len(s.budgets) + len(s.averages)) * len(s.seeds)
        models = " and ".join(m.model for m in s.models)
        learned = "1 switch learned in each trial" if swept else f"{count} switch{'es' * (count != 1)} learned"
        if not s.learns:
            fitted = DOUBTS if s.levels else ["classifier"]
            count = len(s.rates) * len(set(fitted) & set(s.baselines))
            learned = f"{count} switch{'es' * (count != 1)} fitted"
        origin = f"from logged episodes of {models}" if s.logs else f"between {models}"
        if s.random_episodes:
            origin = f"from {s.random_episodes:,} episodes of random calls {origin}"
        where = f"{', played' * bool(s.logs)} on {', '.join(s.levels)}" if s.levels else ""
        parts.append(f"{learned} {origin}{where}")
    if recipe.rounds and recipe.switch and not swept:
        r = recipe.rounds
        parts.append(
            f"at most {r.count} round{'s' * (r.count != 1)} of tuning {recipe.switch.models[0].model} on its calls"
        )
    if recipe.rounds and not recipe.switch:
        r = recipe.rounds
        parts.append(f"at most {r.count} round{'s' * (r.count != 1)} of it, each collected by what the last one tuned")
    if recipe.sweep and swept:
        parts.append(f"swept over {', '.join(recipe.sweep.space)}")
    return "; ".join(parts) + "."
