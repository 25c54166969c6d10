"""Does another ScienceWorld answer the same actions with the same text?

``python benchmarks/sciworld_versions.py gold.json [TASK ...]`` plays the gold path of each task's first variation and
writes what it showed. Where the file is there, the actions in it are played again and what differs is said; put another
version in front by ``pip install --no-deps --target OLD scienceworld==1.2.0`` and ``PYTHONPATH=OLD``.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from atlas_ray import envs
from atlas_ray.envs.science_world import VARIATIONS

# a minute and more for a gold path, or hundreds of actions
SLOW = [name for name in VARIATIONS if name.startswith(("mendelian", "inclined"))]


def shown(task, actions=None, most=60):
    """(actions, [goal, first observation, observation and raw score of each action]) of a task's first variation."""
    env, played = envs.lease(f"ScienceWorld/{task}"), []
    try:
        first, info = env.reset(options={"variation": 0})
        told, over = [info["goal"], first], False
        expert = env.expert() if actions is None else None
        while not over and len(played) < (most if expert else len(actions)):
            played.append(expert.act().action if expert else actions[len(played)])
            text, _, terminated, truncated, info = env.step(played[-1])
            told.append([text, info["raw_score"]])
            over = terminated or truncated
    finally:
        envs.release(env)
    return played, told


def main(path, *tasks):
    here = version("scienceworld")
    if not path.exists():
        rows = {task: shown(task) for task in tasks or [name for name in VARIATIONS if name not in SLOW]}
        path.write_text(json.dumps({"version": here, "tasks": rows}))
        print(f"{len(rows)} tasks by ScienceWorld {here} in {path}")
        return
    before = json.loads(path.read_text())
    rows = {task: row for task, row in before["tasks"].items() if not tasks or task in tasks}
    same = 0
    for task, (actions, told) in rows.items():
        found = shown(task, actions)[1]
        same += found == told
        if found != told:
            place = next((n for n, (a, b) in enumerate(zip(found, told, strict=False)) if a != b), len(found))
            print(f"{task}: other from text {place} of {len(told)}: {found[place : place + 1]}")
    print(f"{same} of {len(rows)} tasks alike: ScienceWorld {here} here, {before['version']} in {path}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    envs.drain()
