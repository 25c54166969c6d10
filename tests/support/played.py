"""Actions played on an environment, step by step."""

import gymnasium as gym


def play(env, actions):
    """What each action led to; the end of the episode refuses the rest."""
    results = []
    for action in actions:
        try:
            observation, reward, terminated, truncated, info = env.step(action)
        except gym.error.ResetNeeded:
            results.append("over")
        else:
            results.append((observation, reward, terminated, truncated, info["score"], info["success"]))
    return results
