"""Roll-outs against the bare engine, one environment in flight, and the loop that one would write first.

    python benchmarks/rollout.py                                       # tiny-quick, in this process and on Ray actors
    python benchmarks/rollout.py --model smollm2-135m --episodes 16 --max-steps 10
    python benchmarks/rollout.py --model smollm2-135m --engine vllm --decide generate --episodes 16 --max-steps 10
    python benchmarks/rollout.py --memory                              # 2,000 episodes

The bare engine gets the very calls of the roll-out, recorded before, with nothing between them. Rounds alternate.
"""

import argparse
import resource
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rollout import EnvSpec, rollout, start_episode
from atlas_ray.agents.spec import AgentSpec
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.cluster.workers import ActorPool, chunks
from atlas_ray.data.parsing import parse
from atlas_ray.engines import EnginePool
from atlas_ray.engines.base import EngineCounters
from atlas_ray.models.loading import load_model, load_tokenizer
from atlas_ray.recipe.loading import Act, Engine
from atlas_ray.trajectory import Step

FLIGHT = 16


@dataclass
class Result:
    seconds: float
    decisions: int
    counters: EngineCounters


class Recorder:
    """Passes calls on and notes them."""

    def __init__(self, engine):
        self._engine, self.calls = engine, []

    def __getattr__(self, name):
        return getattr(self._engine, name)

    def generate(self, *arguments):
        self.calls.append(("generate", arguments))
        return self._engine.generate(*arguments)

    def score(self, *arguments):
        self.calls.append(("score", arguments))
        return self._engine.score(*arguments)


def rest(counters, before):
    """What was counted since ``before``."""
    numbers = {k: v - getattr(before, k) for k, v in vars(counters).items() if k != "id"}
    return replace(counters, **numbers)


def forget(engine):
    for slot in range(engine.slots):
        engine.forget(slot)


def roll(agent, spec, seeds):
    forget(agent.engine)
    before, begun = replace(agent.engine.counters), time.perf_counter()
    decisions = sum(len(f.steps) for f in rollout(agent, ([start_episode(spec, seed)] for seed in seeds)))
    return Result(time.perf_counter() - begun, decisions, rest(agent.engine.counters, before))


def bare(engine, calls, decisions):
    forget(engine)
    before, begun = replace(engine.counters), time.perf_counter()
    for name, arguments in calls:
        getattr(engine, name)(*arguments)
    return Result(time.perf_counter() - begun, decisions, rest(engine.counters, before))


def actor_job(task, kept):
    spec, agent_spec, seeds = task
    agent = agent_spec.agent(kept)
    for finished in rollout(agent, ([start_episode(spec, seed)] for seed in seeds)):
        yield len(finished.steps), agent.engine.counters


def rolled_on_actors(pool, agent_spec, spec, seeds, workers):
    tasks = [(spec, agent_spec, part) for part in chunks(seeds, -(-len(seeds) // workers))]
    begun, decisions, last = time.perf_counter(), 0, None
    for _, (steps, counters) in pool.stream(actor_job, tasks):
        decisions += steps
        last = counters if last is None or counters.answered > last.answered else last
    return time.perf_counter() - begun, decisions, last


@torch.inference_mode()
def naive(model_name, spec, seeds, act):
    """One environment, the whole prompt through ``model.generate`` at every step, no cache kept."""
    model, tokenizer = load_model(model_name).eval(), load_tokenizer(model_name)
    renderer = Renderer(tokenizer)
    most = act.thought_tokens + len(renderer.separator) + act.action_tokens
    begun, decisions = time.perf_counter(), 0
    for seed in seeds:
        start = start_episode(spec, seed)
        env, observation, steps, over = start.env, start.observation, [], False
        while not over:
            ids = torch.tensor([renderer.prompt(start.instruction, steps, observation)])
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=most,
                do_sample=False,
                eos_token_id=renderer.end_of_turn,
                pad_token_id=renderer.end_of_turn,
            )
            reply = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            parsed = parse(f"Thought:{reply}", "react", env.admissible())
            action = parsed.action or reply.strip() or "(no answer)"
            following, reward, terminated, truncated, _ = env.step(action)
            steps.append(Step(observation=observation, thought=parsed.thought, action=action, reward=reward))
            observation, over, decisions = following, terminated or truncated, decisions + 1
    return Result(time.perf_counter() - begun, decisions, EngineCounters())


def row(name, seconds, decisions, fed, base):
    print(f"| {name} | {decisions / seconds:.1f} | {fed / seconds if fed else 0:.0f} | {base:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny-quick")
    parser.add_argument("--engine", default="transformers")
    parser.add_argument("--env", default="GoToLocalS6N4")
    parser.add_argument("--decide", choices=("score", "generate"), default="score")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--max-steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = EnvSpec(options.env, {"max_steps": options.max_steps})
    act = Act(decide=options.decide)
    settings = Engine(kind=options.engine)
    made = AgentSpec(options.model, settings, act, "react", FLIGHT)
    if options.memory:
        return memory(made, spec)
    seeds = list(range(options.episodes))

    agent = made.agent(WorkerState(0))
    recorder = agent.engine = Recorder(agent.engine)
    roll(agent, spec, seeds)
    calls, agent.engine = recorder.calls, recorder._engine
    rolled, replayed = [], []
    for _ in range(options.rounds):
        rolled.append(roll(agent, spec, seeds))
        replayed.append(bare(agent.engine, calls, rolled[0].decisions))
    mine, plain = (sorted(r, key=lambda x: x.seconds)[len(r) // 2] for r in (rolled, replayed))
    print(
        f"{options.model}, {options.engine}, {options.decide}, {options.env}, {FLIGHT} in flight, "
        f"medians of {options.rounds}"
    )
    print("| what | decisions/s | tokens/s | of the bare engine |")
    print("|---|---|---|---|")
    base = plain.decisions / plain.seconds
    row("bare engine, same calls", plain.seconds, plain.decisions, plain.counters.computed_tokens, 1.0)
    row(
        "roll-out in this process",
        mine.seconds,
        mine.decisions,
        mine.counters.computed_tokens,
        mine.decisions / mine.seconds / base,
    )
    agent.engine.close()

    if options.engine == "transformers":
        single = replace(made, slots=1).agent(WorkerState(0))
        few = seeds[: max(2, len(seeds) // 8)]
        one = roll(single, spec, few)
        row(
            "one environment in flight",
            one.seconds,
            one.decisions,
            one.counters.computed_tokens,
            one.decisions / one.seconds / base,
        )
        slow = naive(options.model, spec, few, act)
        row("model.generate, one environment", slow.seconds, slow.decisions, 0, slow.decisions / slow.seconds / base)

    leased = replace(made, engine=Engine(kind=options.engine, actors=1), slots=FLIGHT)
    with (
        ActorPool(options.workers, cpus=0.5) as pool,
        EnginePool(leased.engine, options.model, options.workers, leased.slots) as engines,
    ):
        leased = leased.with_leases(engines.leases)
        rolled_on_actors(pool, leased, spec, seeds[: 2 * options.workers], options.workers)  # starts everything
        times = [rolled_on_actors(pool, leased, spec, seeds, options.workers) for _ in range(options.rounds)]
    seconds = statistics.median(t for t, _, _ in times)
    name = f"engine actor, {options.workers} workers with {FLIGHT} in flight each"
    row(name, seconds, times[0][1], 0, times[0][1] / seconds / base)
    share = mine.counters.cached_tokens / mine.counters.prompt_tokens
    print(f"\n{share:.1%} of the prompt tokens came from the prefix cache")


def memory(made, spec):
    """Resident memory of one process, engine and environments included."""
    agent = made.agent(WorkerState(0))
    print("| episodes | steps | MiB |")
    print("|---|---|---|")
    steps, statm = 0, Path("/proc/self/statm")
    finished = rollout(agent, ([start_episode(spec, seed)] for seed in range(2000)))
    for number, episode in enumerate(finished, start=1):
        steps += len(episode.steps)
        if number % 200 == 0 or number == 20:
            resident = int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
            print(f"| {number} | {steps} | {resident:.0f} |", flush=True)


if __name__ == "__main__":
    main()
