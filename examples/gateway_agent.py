"""An agent that speaks OpenAI's chat API plays BabyAI-Text through a gateway: a switch decides which model answers.

atlas-ray gateway runs/demo switch-budget2-seed0
python examples/gateway_agent.py --seed 3
"""

import argparse
import uuid

import gymnasium as gym
from openai import OpenAI


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8008/v1")
    parser.add_argument("--env", default="atlas_ray.envs:BabyAIText/GoToLocalS6N4-v0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=20)
    options = parser.parse_args()

    client = OpenAI(base_url=options.url, api_key="none", default_headers={"x-atlas-session": uuid.uuid4().hex})
    env = gym.make(options.env, max_steps=options.max_steps)
    observation, info = env.reset(seed=options.seed)
    print(info["goal"])
    messages, over, told = [{"role": "user", "content": info["goal"]}], False, {}
    while not over:
        messages.append({"role": "user", "content": observation})
        raw = client.chat.completions.with_raw_response.create(
            model="londi", messages=messages, extra_body={"structured_outputs": {"choice": info["admissible"]()}}
        )
        told, answer = raw.headers, raw.parse().choices[0].message.content
        messages.append({"role": "assistant", "content": answer})
        action = answer.rpartition("Action:")[2].strip()
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
        print(f"{told['x-atlas-step']:>3} {told['x-atlas-model']:<16} {action}")
    print(f"{'success' if info['success'] else 'failure'}, left: {told['x-atlas-budget-left']}")


if __name__ == "__main__":
    main()
