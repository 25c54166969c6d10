"""What every text environment must keep, as checks that any environment can be run through.

``atlas-ray doctor --env ID`` prints them; a test of one's own environment is two lines::

    for check in conformance.run("my_games:Doors/Three-v0"):
        assert check.ok, check
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import pickle
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.utils.env_checker import check_env
from gymnasium.vector.utils import shared_memory

from .core import ExpertGaveUpError, TextEnv
from .registry import make

BAD_ACTIONS: tuple[Any, ...] = ("", "   ", "fly to the 7th moon", "ö\t\x00\n", "x" * 20_000, None, 3)
_SEEDS = range(3)
_LONG = 2**17
"""Characters of a space that takes seconds to flatten."""


class _Broken(Exception):
    """What a check found."""


class _Skipped(Exception):
    """Why a check does not apply."""


@dataclass(frozen=True)
class Check:
    """Outcome of one check; ``ok`` is None when it does not apply, and ``detail`` says why."""

    name: str
    ok: bool | None
    detail: str


def _need(condition: object, message: str) -> None:
    if not condition:
        raise _Broken(message)


def _play(env: TextEnv, seed: int, actions: list[str]) -> list[Any]:
    """All that a policy may see of an episode."""
    observation, info = env.reset(seed=seed)
    seen: list[Any] = [observation, info["goal"]]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append((observation, reward, terminated, truncated, info["score"], info["success"]))
        if terminated or truncated:
            break
    return seen


def _actions(env: TextEnv, seed: int, most: int) -> list[str]:
    """Something to do in the episode of a seed: the expert's actions, else admissible ones, else a word."""
    env.reset(seed=seed)
    found: list[str] = []
    try:
        expert = env.expert()
        while len(found) < most:
            found.append(expert.act().action)
            _, _, terminated, truncated, _ = env.step(found[-1])
            if terminated or truncated:
                break
        return found
    except ExpertGaveUpError:
        if found:
            return found
    env.reset(seed=seed)
    while len(found) < most:
        offered = env.admissible() or ["look"]
        found.append(offered[(7 * len(found)) % len(offered)])
        _, _, terminated, truncated, _ = env.step(found[-1])
        if terminated or truncated:
            break
    return found


def _seeded(env: TextEnv) -> None:
    if why := env.lacks().get("seeds"):
        raise _Skipped(f"it has no seeds: {why}")


def _gymnasium(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        _seeded(env)  # which check_env takes for given
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_env(env, skip_render_check=True)
    finally:
        env.close()
    mine = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    _need(not mine, f"check_env warns: {mine[:1]}")
    return "gymnasium's check_env has nothing to say"


def _flattened(space: gym.Space[str], text: str) -> None:
    if gym.spaces.flatdim(space) > _LONG:
        return
    flat = gym.spaces.flatten(space, text)
    _need(flat in gym.spaces.flatten_space(space), f"{text!r:.80} is flattened to what flatten_space does not hold")
    back = gym.spaces.unflatten(space, flat)
    _need(back == text, f"{text!r:.80} is flattened, and comes back as {back!r:.80}")


def _vectorised(new: Callable[..., TextEnv]) -> str:
    """What gymnasium's vector environments do to it, without their processes."""
    env = new()
    try:
        memory = shared_memory.create_shared_memory(env.observation_space, 2, multiprocessing)
        seen = shared_memory.read_from_shared_memory(env.observation_space, memory, 2)
        for action in (None, "look", "drück 日本 🎈"):
            observation, info = env.reset(seed=0) if action is None else env.step(action)[::4]
            _need(observation in env.observation_space, f"{observation!r:.80} is not in its observation_space")
            shared_memory.write_to_shared_memory(env.observation_space, 1, observation, memory)
            arrived = copy.deepcopy(seen)[1]
            _need(arrived == observation, f"{observation!r:.80} arrives as {arrived!r:.80} through shared memory")
            _flattened(env.observation_space, observation)
            _flattened(env.action_space, action or "")
            pickle.dumps(info)
            if env._done:
                break
            _need("drück 日本 🎈" in env.action_space, "its action_space holds no foreign characters")
        return "observations pass through gymnasium's shared memory and flatten, info to another process"
    finally:
        env.close()


def _info(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        _, info = env.reset(seed=0)
        for moment in ("reset", "step"):
            if moment == "step":
                info = env.step((env.admissible() or ["look"])[0])[4]
            _need(isinstance(info.get("goal"), str) and info["goal"].strip(), f"{moment}: info['goal'] is not a text")
            score, success = info.get("score"), info.get("success")
            _need(isinstance(score, float | int) and 0 <= score <= 1, f"{moment}: info['score'] is {score!r}, not 0..1")
            _need(isinstance(success, bool), f"{moment}: info['success'] is {success!r}, not a bool")
            _need(callable(info.get("admissible")), f"{moment}: info['admissible'] is not callable")
            known = info.get("progress", 0.0)
            _need(isinstance(known, float | int) and 0 <= known <= 1, f"{moment}: info['progress'] is {known!r}")
        offered = info["admissible"]()
        _need(isinstance(offered, list) and all(isinstance(a, str) for a in offered), "admissible() is no list of str")
        return f"goal, score, success{', progress' if 'progress' in info else ''}; {len(offered)} admissible actions"
    finally:
        env.close()


def _deterministic(new: Callable[..., TextEnv]) -> str:
    first, second = new(), new()
    try:
        _seeded(first)
        steps = 0
        for seed in _SEEDS:
            actions = _actions(first, seed, 40)
            one, two, again = _play(first, seed, actions), _play(second, seed, actions), _play(first, seed, actions)
            for other, which in ((two, "another environment"), (again, "the same environment reset again")):
                at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
                _need(one == other, f"seed {seed}: {which} differs at step {(at or 0) - 1}")
            steps += len(actions)
        return f"{steps} steps of {len(_SEEDS)} seeds, thrice the same"
    finally:
        first.close()
        second.close()


def _seeds(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        there = len(env.variations(env.task, env.split))
        if there < 2:
            raise _Skipped("there is one episode only")
        starts = []
        for seed in range(min(8, there)):
            observation, info = env.reset(seed=seed)
            starts.append((observation, info["goal"], env.variation))
        _need(len(set(starts)) > 1, f"{len(starts)} seeds begin the same episode: is the seed dropped?")
        return f"{len(set(starts))} different episodes of {len(starts)} seeds; {there} in all"
    finally:
        env.close()


def _options(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        env.reset(seed=0)
        for bad in ({"no such option": 1}, {"split": "no such split"}, {"variation": -1}, {"task": "no such task"}):
            try:
                env.reset(seed=0, options=dict(bad))
            except ValueError:
                continue
            raise _Broken(f"reset(options={bad}) is neither honoured nor refused with a ValueError")
        choices = env.variations(env.task, env.split)
        wanted = choices[len(choices) // 2]
        env.reset(options={"variation": wanted})
        _need(env.variation == wanted, f"variation {wanted} was asked for, {env.variation} is played")
        # such as games that somebody has only some of
        empty = [split for split in env.splits if not len(env.variations(env.task, split))]
        for split in (s for s in env.splits if s not in empty):
            env.reset(seed=1, options={"split": split})
            _need(env.variation in env.variations(env.task, split), f"split {split} gives an episode of another split")
        seen = [
            set(env.variations(env.task, s)) if len(env.variations(env.task, s)) < 10**5 else () for s in env.splits
        ]
        _need(all(not set(a) & set(b) for a in seen for b in seen if a is not b), "splits share episodes")
        without = f", without episodes {', '.join(empty)}" if empty else ""
        return f"splits {', '.join(env.splits) or 'none'}{without}; what is unknown is refused"
    finally:
        env.close()


def _expert(new: Callable[..., TextEnv]) -> str:
    # an own limit: a default one may be for agents that are quicker than the expert
    env = new(max_steps=1000)
    try:
        lengths = []
        for seed in _SEEDS:
            env.reset(seed=seed)
            try:
                expert = env.expert()
            except ExpertGaveUpError as error:
                raise _Skipped(str(error)) from None
            while True:
                try:
                    move = expert.act()
                except ExpertGaveUpError as error:
                    raise _Broken(f"seed {seed}: {error} after {len(env.history)} steps") from None
                _, _, terminated, truncated, info = env.step(move.action)
                if terminated or truncated:
                    break
            _need(info["success"], f"seed {seed}: ends after {len(env.history)} steps with score {info['score']:.2f}")
            lengths.append(len(env.history))
        return f"succeeds on seeds 0 to {_SEEDS[-1]} in {', '.join(map(str, lengths))} steps"
    finally:
        env.close()


def _bad_actions(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        env.reset(seed=0)
        for action in BAD_ACTIONS:
            try:
                observation, _, terminated, truncated, _ = env.step(action)
            except Exception as error:
                raise _Broken(f"step({action!r:.40}) raises {type(error).__name__}: {error}") from None
            _need(isinstance(observation, str) and observation, f"step({action!r:.40}) gives no observation")
            if terminated or truncated:
                env.reset(seed=0)
        return f"{len(BAD_ACTIONS)} of them are answered by an observation"
    finally:
        env.close()


def _limit(new: Callable[..., TextEnv]) -> str:
    env = new(max_steps=3)
    try:
        env.reset(seed=0)
        for n in range(1, 4):
            _, _, terminated, truncated, _ = env.step("fly to the 7th moon")
            _need(not (truncated and n < 3), f"truncated after {n} of 3 steps")
            if terminated:
                raise _Skipped("the episode ends by itself before a limit of three steps")
        _need(truncated, "max_steps=3 does not truncate the third step")
        try:
            env.step("look")
        except gym.error.ResetNeeded:
            return "max_steps=3 truncates the third step; a fourth is refused"
        raise _Broken("a step after the end is not refused with gymnasium.error.ResetNeeded")
    finally:
        env.close()


def _clone(new: Callable[..., TextEnv]) -> str:
    env = new()
    try:
        seed, actions = max(((s, _actions(env, s, 6)) for s in _SEEDS), key=lambda found: len(found[1]))
        if len(actions) < 2:
            raise _Skipped("episodes are over after one step")
        env.reset(seed=seed)
        half = len(actions) // 2
        for action in actions[:half]:
            env.step(action)
        try:
            twin = env.clone()
        except NotImplementedError as error:
            raise _Skipped(str(error) or "it has no clone()") from None
        try:
            theirs = [twin.step(action)[:4] for action in actions[half:]]
            ours = [env.step(action)[:4] for action in actions[half:]]
        finally:
            twin.close()
        _need(theirs == ours, "a clone goes another way than the original under the same actions")
        return f"a clone at step {half} and its original go the same way, each by itself"
    finally:
        env.close()


def _children() -> set[int]:
    with subprocess.Popen(["ps", "-A", "-o", "pid=,ppid="], stdout=subprocess.PIPE, text=True) as ps:  # noqa: S607
        listed = [tuple(map(int, line.split())) for line in ps.communicate()[0].splitlines()]
    return {pid for pid, parent in listed if parent == os.getpid() and pid != ps.pid}


def _close(new: Callable[..., TextEnv]) -> str:
    before = _children()
    env = new()
    env.reset(seed=0)
    own = _children() - before
    env.close()
    env.close()
    end = time.monotonic() + 5
    while (left := _children() & own) and time.monotonic() < end:
        time.sleep(0.05)
    _need(not left, f"after close() the processes {sorted(left)} are still there")
    return f"close() twice; {len(own) or 'no'} process{'es' if len(own) > 1 else ''} freed"


CHECKS: dict[str, Callable[[Callable[..., TextEnv]], str]] = {
    "gymnasium": _gymnasium,
    "vectorised": _vectorised,
    "info": _info,
    "same seed, same text": _deterministic,
    "seeds": _seeds,
    "reset options": _options,
    "expert": _expert,
    "bad actions": _bad_actions,
    "step limit": _limit,
    "clone": _clone,
    "close": _close,
}


def run(name: str, **options: Any) -> Iterator[Check]:
    """Run an environment through every check.

    Args:
        name: as for :func:`envs.make`.
        options: its settings.

    Raises:
        UnknownEnvironmentError: no such environment.
        MissingExtraError: it cannot run here.
    """
    # kept open until the last check: where a process stands behind the environments, the checks share it
    keeper = make(name, **options)

    def new(**more: Any) -> TextEnv:
        return make(name, **{**options, **more})

    with contextlib.suppress(Exception):
        keeper.reset(seed=0)
    for title, check in CHECKS.items():
        if title == "close":
            keeper.close()
        try:
            yield Check(title, True, check(new))
        except _Skipped as why:
            yield Check(title, None, str(why))
        except _Broken as broken:
            yield Check(title, False, str(broken))
        except Exception as error:  # a check must report what an unknown environment does, whatever it does
            yield Check(title, False, f"{type(error).__name__}: {error}")
