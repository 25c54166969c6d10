"""What the expert's episode of a TextWorld game says, here or as a program of its own."""

import json
import sys

from atlas_ray.envs.textworld import TextWorld


def episode(task, cache, variation):
    env = TextWorld(task, cache=cache)
    said = list(env.reset(options={"variation": variation})[0:1])
    expert, over = env.expert(), False
    while not over:
        observation, _, over, _, info = env.step(expert.act().action)
        said += [observation, info["score"], info["admissible"]()]
    return said


if __name__ == "__main__":
    print(json.dumps(episode(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
