"""An episode of BabyAI-Text, played by whatever `atlas-ray serve` serves.

atlas-ray serve runs/demo switch-budget2-seed0
python examples/serve_client.py --seed 3
"""

import argparse
import json
from urllib.request import Request, urlopen

import gymnasium as gym


def ask(url, body=None, method="POST"):
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"}, method=method)) as answer:  # noqa: S310
        return json.loads(answer.read() or "null")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8008")
    parser.add_argument("--env", default="atlas_ray.envs:BabyAIText/GoToLocalS6N4-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=20)
    options = parser.parse_args()

    env = gym.make(options.env, max_steps=options.max_steps)
    observation, info = env.reset(seed=options.seed)
    print(info["goal"])
    begun = ask(f"{options.url}/episodes", {"instruction": info["goal"], "max_steps": options.max_steps})
    episode = f"{options.url}/episodes/{begun['id']}"
    over, step = False, 0
    while not over:
        # by its number a step that is asked for again, since its answer was lost, is told from the next one
        told = ask(f"{episode}/act", {"observation": observation, "actions": info["admissible"](), "step": step})
        step += 1
        observation, _, terminated, truncated, info = env.step(told["action"])
        over = terminated or truncated
        print(f"{told['step']:>3} {told['model']:<16} {told['action']}")
    about = ask(episode, method="GET")
    ask(episode, method="DELETE")
    print(f"{'success' if info['success'] else 'failure'}, {about['calls']} calls, {about['calls_left']} left")


if __name__ == "__main__":
    main()
