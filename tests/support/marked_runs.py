"""Runs whose marks follow from their text, to distil from."""

import random

from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import Annotation, Step, Trajectory, write_annotations, write_trajectories

SIGHTS = ["You see a wall 2 steps left", "You see a red ball 1 step right", "You see a key 1 step forward"]
MOVES = ["turn left", "turn right", "go forward"]


def episodes(count, levels=("e1", "e2", "e3"), seed=0):
    """Trajectories of 4 to 9 steps; the one thing that matters, picking up, comes anywhere and never last."""
    rng, made = random.Random(seed), []
    for n in range(count):
        steps = [
            Step(observation=rng.choice(SIGHTS), thought="explore", action=rng.choice(MOVES))
            for _ in range(rng.randint(4, 9))
        ]
        place = rng.randrange(len(steps) - 1)
        steps[place] = Step(observation=rng.choice(SIGHTS), thought="go to the key", action="pick up")
        about = {"task": "t", "seed": n, "instruction": "go to the key", "score": 1, "success": True, "source": "x"}
        made.append(Trajectory(id=f"{seed}-{n}", env=levels[n % len(levels)], steps=tuple(steps), **about))
    return made


def picked(trajectory):
    """The teacher: it marks where something is picked up."""
    return tuple(t for t, step in enumerate(trajectory.steps) if step.action == "pick up")


def shuffled(trajectory):
    """As many steps as :func:`picked`, wherever."""
    drawn = random.Random(trajectory.id).sample(range(len(trajectory.steps)), len(picked(trajectory)))
    return tuple(sorted(drawn))


def marked_run(run_dir, trajectories, marks=picked, selector="theirs"):
    """Write a run with trajectories and one selector's marks; returns ``RUN/SELECTOR``."""
    layout = RunLayout(run_dir)
    write_trajectories(layout.expert, trajectories)
    found = [Annotation(trajectory_id=t.id, selector=selector, fraction=0.5, critical=marks(t)) for t in trajectories]
    write_annotations(layout.annotations(selector), found)
    return str(run_dir / selector)
