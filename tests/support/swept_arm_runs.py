"""Made-up sweeps over arms: small trial directories without a training, and one run that holds the same arms."""

import numpy as np
from sweep_recipes import recipe_of

from atlas_ray.data.results import interval
from atlas_ray.recipe.sweep_space import shown
from atlas_ray.rundir.files import append_jsonl, write_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.sweep.trials import trials_of

SHARE = "collect.expert.habit_share"
ARMS = [
    {"selector": "all"},
    {"selector": "random"},
    {"selector": "value"},
    {"selector": "random_value"},
    {"selector": "non-critical_value"},
    {"selector": "value", "anchor": 0.5},
    {"selector": "random_value", "anchor": 0.5},
]
HELD_IN, HELD_OUT = ["PickupDist", "PutNextLocalS5N3"], ["GoToLocalS6N4"]
EPISODES, SEEDS = 20, 3
# success by arm on held-in levels without bias and with it; held-out the same plus 0.3
_RATES = {
    "none": (0.05, 0.05),
    "all": (0.6, 0.05),
    "random": (0.55, 0.1),
    "value": (0.5, 0.15),
    "random_value": (0.5, 0.1),
    "non-critical_value": (0.05, 0.02),
    "value+anchor0.5": (0.5, 0.6),
    "random_value+anchor0.5": (0.45, 0.1),
}


def sweep_recipe(space=None, **more):
    """Of arms, over the expert's bias too where no other space is given."""
    selectors = ["all", "random", "value", "random_value", "non-critical_value"]
    space = space or {SHARE: {"grid": [0.0, 1.0]}}
    recipe = recipe_of("tiny-quick", {**space, "finetune.arms": {"grid": ARMS}}, name="swept", **more)
    data = recipe.model_dump(mode="json", exclude_unset=True)
    data["collect"]["expert"] = {"habit": ["turn left"]}
    data["select"]["selectors"] = selectors
    data["finetune"]["seeds"] = list(range(SEEDS))
    data["evaluate"] |= {"held_in": HELD_IN, "held_out": HELD_OUT, "episodes": EPISODES}
    return type(recipe).model_validate(data)


def name_of(values):
    return shown(values["finetune.arms"])


def episodes_of(name, share):
    """Rows of the episodes of an arm, or of the untuned model: the same ones for the same share of bias."""
    rng = np.random.default_rng([ord(c) for c in f"{name} {0 if name == 'none' else share}"])
    rate = _RATES[name][0] * (1 - share) + _RATES[name][1] * share
    models = ["none"] if name == "none" else [f"{name}/{seed}" for seed in range(SEEDS)]
    return [
        {"model": model, "level": level, "seed": seed, "success": bool(won), "lost": False}
        for model in models
        for level in (*HELD_IN, *HELD_OUT)
        for seed, won in enumerate(rng.random(EPISODES) < rate + 0.5 * (level in HELD_OUT))
    ]


def arm_row(name, rows):
    """The arm of these episodes as the evaluation writes it."""
    selector, _, anchor = name.partition("+anchor")
    untuned, everything = selector == "none", selector == "all"

    def cell(levels):
        won = {}
        for row in rows:
            if row["level"] in levels:
                won.setdefault(row["model"], []).append(row["success"])
        mean, low, high = interval(list(won.values()))
        return {"success": mean, "ci95": [low, high], "episodes": sum(map(len, won.values()))}

    def score(levels):
        return {**cell(levels), "levels": {level: cell([level]) for level in levels}}

    made = {"selector": selector, "fraction": 0.0 if untuned else 1.0 if everything else 0.3}
    made |= {"anchor": float(anchor)} if anchor else {}
    made |= {"seeds": [] if untuned else list(range(SEEDS)), "steps_share": 0.0 if untuned else 0.3}
    made |= {"trained_tokens": 0 if untuned else 9000 if everything else 3000, "context_tokens": 0}
    return {**made, "train_seconds": 0.0 if untuned else 2.0, "held_in": score(HELD_IN), "held_out": score(HELD_OUT)}


def write_trial(trial):
    """What a finished trial leaves that others read."""
    name, share = name_of(trial.values), trial.values.get(SHARE, 1.0)
    rows = [episodes_of(one, share) for one in ("none", name)]
    write_json(trial.layout.recipe, trial.recipe.model_dump(mode="json"))
    append_jsonl(trial.layout.evaluation_episodes, [row for own in rows for row in own])
    arms = [arm_row(one, own) for one, own in zip(("none", name), rows, strict=True)]
    write_json(trial.layout.atlas_scores, {"arms": arms})
    trial.end("done", 3.0)


def write_sweep(run_dir, recipe=None, unfinished=()):
    """A sweep whose trials of these numbers are still to be done; without ``sweep.json``. Returns its trials."""
    recipe = recipe or sweep_recipe()
    write_json(RunLayout(run_dir).recipe, recipe.model_dump(mode="json"))
    trials = trials_of(recipe, run_dir)
    for trial in trials:
        if trial.number not in unfinished:
            write_trial(trial)
        else:
            write_json(trial.layout.recipe, trial.recipe.model_dump(mode="json"))
    return trials


def write_one_run(run_dir, share):
    """One run with all arms, whose episodes are those of the sweep's trials with this share of bias."""
    arms = []
    for name in _RATES:
        rows = episodes_of(name, share)
        append_jsonl(RunLayout(run_dir).evaluation_episodes, rows)
        arms.append(arm_row(name, rows))
    write_json(RunLayout(run_dir).results, {"atlas": {"arms": arms}})
