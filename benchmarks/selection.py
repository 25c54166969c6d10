"""Selection against the plain way: the oracle against the bare engine, values with and without shared prefixes.

    python benchmarks/selection.py value                            # tiny-quick, roll-outs from every state
    python benchmarks/selection.py oracle                           # tiny-quick writes, nothing is valid: speed only
    python benchmarks/selection.py oracle --model smollm2-135m --trajectories 4

The oracle's bare engine gets the very prompts that the oracle asked, recorded before, in the same batches. Rounds
alternate. Answers of small models are refused, so every trajectory is asked about once (``max_reprompts=0``).
"""

import argparse
import statistics
import time

import torch

from atlas_ray.agents.rollout import EnvSpec, rollout
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine, make_engine
from atlas_ray.recipe.loading import Engine
from atlas_ray.selection.chat_backend import EngineBackend
from atlas_ray.selection.oracle import Oracle, OracleConfig
from atlas_ray.selection.replays import checkpoint_states
from atlas_ray.selection.value import ValueConfig, _prefix_group, estimate_values
from atlas_ray.stages.collect import expert_episode


def experts(spec, count):
    made, seed = [], 0
    while len(made) < count:
        episode = expert_episode(spec, seed, 2.0)
        made += [] if isinstance(episode, str) else [episode]
        seed += 1
    return made


def forget(engine):
    for slot in range(engine.slots):
        engine.forget(slot)


def timed(function):
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def value(options):
    spec = EnvSpec(options.env, {"max_steps": 40})
    trajectories = experts(spec, options.trajectories)
    config = ValueConfig(4, 8, {spec.id: spec})
    agent = Agent(TransformersEngine(options.model, 32), temperature=1.0)

    def shared():
        forget(agent.engine)
        estimate_values(agent, trajectories, config)

    def apart():
        """Every roll-out by itself: its prefix is replayed and read again."""
        forget(agent.engine)
        starts = [
            [start]
            for t in trajectories
            for states in [checkpoint_states(t, spec)]
            for k in range(config.rollouts)
            for start in _prefix_group(t, states, k)
        ]

        class Forgetful(Agent):
            def start(self, slot, *arguments):
                self.engine.forget(slot)
                super().start(slot, *arguments)

        fresh = Forgetful(agent.engine, temperature=1.0)
        for _ in rollout(fresh, starts, config.horizon):
            pass

    report("value", {"prefixes shared": shared, "every roll-out by itself": apart}, agent.engine, trajectories, options)


def oracle(options):
    spec = EnvSpec(options.env, {"max_steps": 40})
    trajectories = experts(spec, options.trajectories)
    engine = make_engine(Engine(kind=options.engine), options.model, 16)
    config = OracleConfig(context=engine.context, max_tokens=options.max_tokens, max_reprompts=0, batch=16)
    calls, generate = [], engine.generate

    def recorded(*arguments, **more):
        calls.append((arguments, more))
        return generate(*arguments, **more)

    def ask():
        forget(engine)
        backend = EngineBackend(engine, options.model)
        for _ in Oracle(backend, config, None, backend.count).annotate(trajectories):
            pass

    engine.generate = recorded
    ask()
    engine.generate = generate

    def bare():
        forget(engine)
        for arguments, more in calls:
            generate(*arguments, **more)

    report("oracle", {"bare engine, same prompts": bare, "oracle": ask}, engine, trajectories, options)


def report(what, ways, engine, trajectories, options):
    found = {name: [] for name in ways}
    fed = {}
    for _ in range(options.rounds):
        for name, way in ways.items():
            before = engine.counters.computed_tokens
            found[name].append(timed(way))
            fed[name] = engine.counters.computed_tokens - before
    print(f"{what}, {options.model}, {len(trajectories)} trajectories of {options.env}, medians of {options.rounds}")
    print("| way | trajectories/s | tokens through the model |")
    print("|---|---|---|")
    for name, times in found.items():
        print(f"| {name} | {len(trajectories) / statistics.median(times):.2f} | {fed[name]:,} |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("value", "oracle"))
    parser.add_argument("--model", default="tiny-quick")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--env", default="PutNextLocalS5N3")
    parser.add_argument("--trajectories", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=700)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"value": value, "oracle": oracle}[options.what](options)


if __name__ == "__main__":
    main()
