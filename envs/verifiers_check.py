"""What ``check.py`` of an exported package does: verifiers loads it, and our environment is played through it."""

from __future__ import annotations

from typing import Any

from .core import ExpertGaveUpError
from .registry import make
from .verifiers import Verifiers

_STEPS = 5


def check(package: str, episodes: int = 1) -> int:
    """Play episodes of a package through verifiers, beside the environment itself; 0 when both say the same.

    The environment's expert plays, or, where it has none, the first admissible actions for a few steps.
    """
    import verifiers.v1 as vf

    tasks = iter(vf.load_taskset(vf.taskset_config_type(package)(id=package)))
    through = Verifiers(f"verifiers:{package}", max_steps=10_000)
    try:
        for number, task in zip(range(episodes), tasks, strict=False):
            problem = _episode(through, number, task.data)
            print(f"{task.data.name}: {problem or 'as alone'}", flush=True)
            if problem:
                return 1
    finally:
        through.close()
    return 0


def _episode(through: Verifiers, number: int, data: Any) -> str:
    """What differs, empty when nothing does."""
    alone = make(data.env, **data.settings)
    try:
        options = {"variation": data.variation, "split": data.episode_split}
        seen, info = alone.reset(options={k: v for k, v in options.items() if v is not None})
        said, _ = through.reset(options={"variation": number})
        try:
            expert = alone.expert()
        except ExpertGaveUpError:
            expert = None
        steps = 0
        while True:
            if seen not in said or (not steps and info["goal"] not in said):
                return f"step {steps} shows {said!r:.200}, not {seen!r:.200}"
            action = expert.act().action if expert else (alone.admissible() or ["look"])[0]
            seen, _, terminated, truncated, info = alone.step(action)
            said, _, over, _, told = through.step(f"I know.\nAction: {action}")
            steps += 1
            if terminated or truncated:
                break
            if expert is None and steps == _STEPS:
                return ""
        if not over:
            return f"is not over after {steps} steps"
        same = (told["score"], told["success"]) == (info["score"], info["success"])
        return (
            "" if same else f"score {told['score']}, success {told['success']}, not {info['score']}, {info['success']}"
        )
    finally:
        alone.close()
