"""Where each selector of a run marks, and which actions: a selection that skews them shifts the tuned model's habits.

python benchmarks/selection_mix.py runs/unbiased-expert
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from atlas_ray.rundir.layout import RunLayout
from atlas_ray.trajectory import read_annotations, read_trajectories


def main(run_dir: Path) -> None:
    trajectories = {t.id: t for t in read_trajectories(RunLayout(run_dir).expert)}
    mixes: dict[str, Counter[str]] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for path in sorted((run_dir / "annotations").glob("*.jsonl")):
        annotations = read_annotations(path, trajectories.values())
        mixes[path.stem] = Counter(
            trajectories[a.trajectory_id].steps[i].action for a in annotations for i in a.critical
        )
        places[path.stem] = [(i, len(trajectories[a.trajectory_id].steps)) for a in annotations for i in a.critical]
    actions = sorted({action for mix in mixes.values() for action in mix})
    print("| selector | steps | last step | mean place | " + " | ".join(actions) + " |")
    print("|---|---|---|---|" + "---|" * len(actions))
    for selector, mix in mixes.items():
        shares = (f"{mix[action] / mix.total():.0%}" for action in actions)
        last = sum(i == steps - 1 for i, steps in places[selector]) / mix.total()
        place = sum((i + 1) / steps for i, steps in places[selector]) / mix.total()
        print(f"| {selector} | {mix.total()} | {last:.0%} | {place:.2f} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
