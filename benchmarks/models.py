"""Success of the two shipped models on the levels that the demo scores: the table of atlas_ray/weights/README.md.

    python benchmarks/models.py [EPISODES]

Greedy, at most 20 steps an episode, one thread.
"""

from __future__ import annotations

import sys

import torch

from atlas_ray.agents.rollout import EVALUATE, EnvSpec, rollout, seed_block, start_episode
from atlas_ray.agents.token_agent import Agent
from atlas_ray.data.results import interval
from atlas_ray.engines import TransformersEngine
from atlas_ray.models.loading import SHIPPED

LEVELS = ("GoToLocalS6N4", "PickupDist", "PutNextLocalS5N3", "PickupLoc", "PutNextLocalS6N4")
FIRST = seed_block(1, EVALUATE)


def main(episodes: int) -> None:
    torch.set_num_threads(1)
    agents = {name: Agent(TransformersEngine(name, slots=32)) for name in SHIPPED}
    print("| level | " + " | ".join(SHIPPED) + " |")
    print("|---|" + "---|" * len(SHIPPED))
    for level in LEVELS:
        cells = []
        for agent in agents.values():
            prefix_groups = ([start_episode(EnvSpec(level, {"max_steps": 20}), FIRST + i)] for i in range(episodes))
            mean, low, high = interval([[finished.success for finished in rollout(agent, prefix_groups)]])
            cells.append(f"{mean:.2f} [{low:.2f}, {high:.2f}]")
        print(f"| {level} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
