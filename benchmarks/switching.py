"""The switch: environment steps and updates a second, and what a decision of a restored policy takes.

    python benchmarks/switching.py                          # all four parts
    python benchmarks/switching.py --only env               # TextGame: batches, one at a time, answers kept
    python benchmarks/switching.py --only updates           # our training iteration beside RLlib's defaults
    python benchmarks/switching.py --only latency           # SwitchPolicy.load and a decision
    python benchmarks/switching.py --only signals           # what each signal costs
    python benchmarks/switching.py --json switching.json    # the numbers too

``env``: tiny-quick and tiny-deepthink, who calls is random. ``updates``: both sides play the same tabular game, whose
steps take next to nothing and whose observations are as wide as hashed text, with the same network widths, batch size
and updates an environment step; the rest of RLlib's side is its default, with an ``EpisodeReplayBuffer``. Rounds
alternate, medians count. ``signals``: the same episodes whatever is seen, with calls at a third of the steps; CPU time
is of reading a state whose answer by QUICK is there, FLOPs are of both models. Everything is for one thread.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import numpy as np
import switch_mdps
import torch

from atlas_ray import envs
from atlas_ray.agents.rollout import env_spec
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.errors import InputError
from atlas_ray.models.encoders import make_encoder
from atlas_ray.recipe.loading import Recipe, Switch
from atlas_ray.rundir import files
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Random
from atlas_ray.switching.decision_cache import DecisionCache
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.logistic import ANSWERED_WIDTH, BLANK, read, read_answer
from atlas_ray.switching.players import open_players
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.signals import WIDTHS, Weights
from atlas_ray.switching.text_game import TextGame

PARTS = ("env", "updates", "latency", "signals")
LEVEL, MAX_STEPS, WIDTH, HIDDEN, BATCH = "GoToLocalS6N4", 20, 256, (128, 64), 64
REPEATS = 10
NOTHING_KNOWN = Weights(BLANK, (0.0,) * ANSWERED_WIDTH)


def recipe_of(rows):
    switch = {"levels": [LEVEL], "max_steps": MAX_STEPS, "costs": [0.05], "num_envs": rows}
    return Recipe.model_validate({"name": "switching", "workers": 0, "switch": switch})


def medians(rounds, kinds):
    """``kinds``: name -> function that gives a rate; the median of each, in alternating rounds."""
    rates = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, measure in kinds.items():
            rates[name].append(measure())
    return {name: statistics.median(of) for name, of in rates.items()}


def show(title, head, rows):
    print(f"\n{title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(f'{c:,.2f}' if isinstance(c, float) else str(c) for c in row)} |", flush=True)


# Environment steps
def env_part(options):
    recipe = recipe_of(options.rows)
    specs = [env_spec(recipe, LEVEL, MAX_STEPS, "train")]
    # one engine holds as many slots as it has rows, so a row alone has models of its own
    players = {rows: open_players(recipe_of(rows), WorkerState()) for rows in (options.rows, 1)}
    seed = 0

    def steps_a_second(rows):
        nonlocal seed
        game = TextGame(specs, players[rows], rows, make_encoder("hashing", WIDTH))
        env, rng = SwitchingVectorEnv(game, seed, cost=0.05), np.random.default_rng(seed)
        env.reset()
        over, steps, begun = np.zeros(rows, bool), 0, time.perf_counter()
        while (seconds := time.perf_counter() - begun) < options.seconds:
            steps += rows - int(over.sum())
            _, _, terminated, truncated, _ = env.step(rng.integers(0, 2, rows))
            over = terminated | truncated
        seed = env.next_seed
        return steps / seconds

    names = {f"SwitchingVectorEnv, {options.rows} rows": options.rows, "one episode at a time": 1}
    found = medians(options.rounds, {name: lambda rows=rows: steps_a_second(rows) for name, rows in names.items()})

    def evaluation(cache):
        begun = time.perf_counter()
        seeds = range(10**6, 10**6 + options.episodes)
        cached = {} if cache is None else {"decision_cache": cache}
        rows = evaluate_policy(Random(0.5), players[options.rows], specs, seeds, **cached)
        return sum(row["steps"] for row in rows) / (time.perf_counter() - begun)

    cache = DecisionCache()
    evaluation(None)
    found["evaluation, nothing kept"] = evaluation(None)
    found["evaluation, answers kept, the first time"] = evaluation(cache)
    asked = cache.hits + cache.misses
    before = cache.hits
    found["evaluation, answers kept, again"] = evaluation(cache)
    hits = (cache.hits - before) / (cache.hits + cache.misses - asked)
    base = found["one episode at a time"]
    show("Environment steps", ["what", "steps/s", "of one at a time"], [[n, r, r / base] for n, r in found.items()])
    print(f"\n{hits:.1%} of the answers were there the second time")
    return {"steps_per_second": found, "hits": hits}


# Updates
class Counted:
    """Passes updates on and counts them: those of ours are many in a call."""

    def __init__(self, group):
        self.updates, self._update = 0, group.update
        group.update = self

    def __call__(self, *args, **kwargs):
        size = kwargs.get("minibatch_size")
        self.updates += kwargs["batch"].env_steps() // size if size else 1
        return self._update(*args, **kwargs)


def ours(algorithm, options, make_env, width):
    from atlas_ray.switching.algorithm import build_algorithm

    settings = Switch(
        levels=[LEVEL],
        costs=[0.05],
        algorithm=algorithm,
        num_envs=options.rows,
        batch_size=BATCH,
        updates_per_step=options.updates_per_step,
        steps=10**6,
    )
    return build_algorithm(f"benchmark-{algorithm}", make_env, settings, SwitchConfig(width, HIDDEN, cost=0.05), 0, 0)


def rllibs(algorithm, options, make_env):
    from ray.rllib.algorithms.dqn import DQNConfig
    from ray.rllib.algorithms.sac import SACConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    register_env("benchmark-rllib", lambda context: make_env(0, 1))
    config = {"dqn": DQNConfig, "sac": SACConfig}[algorithm]()
    return (
        config.environment("benchmark-rllib")
        .env_runners(
            num_env_runners=0,
            gym_env_vectorize_mode="vector_entry_point",
            num_envs_per_env_runner=options.rows,
            rollout_fragment_length=4,
        )
        .learners(num_learners=0)
        .training(
            train_batch_size_per_learner=BATCH,
            training_intensity=options.updates_per_step * BATCH,
            num_steps_sampled_before_learning_starts=500,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 50_000},
        )
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(HIDDEN), fcnet_activation="relu"))
        .debugging(log_level="ERROR")
        .build_algo()
    )


def updates_part(options):
    from ray.rllib.utils.metrics import ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME

    from atlas_ray.cluster.workers import ensure_ray
    from atlas_ray.switching.env_runners import silence_rllib

    ensure_ray(1)
    silence_rllib()
    mdp = switch_mdps.tree("benchmark", 5, width=WIDTH)
    switch_mdps.MDPS[mdp.name] = mdp
    make_env = switch_mdps.maker(mdp.name, cost=0.05, rows=options.rows)
    found, rows = {}, []
    for name in ("dqn", "sac"):
        sides = {"ours": lambda name=name: ours(name, options, make_env, WIDTH)}
        sides["RLlib's default"] = lambda name=name: rllibs(name, options, make_env)
        built, rates = {}, {side: [] for side in sides}
        for side, make in sides.items():
            algorithm = make()
            counted = Counted(algorithm.learner_group)
            while counted.updates < 200:
                algorithm.train()
            built[side] = algorithm, counted

        def sampled(algorithm):
            return algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))

        for _ in range(options.rounds):
            for side, (algorithm, counted) in built.items():
                updates, steps, begun = counted.updates, sampled(algorithm), time.perf_counter()
                while (seconds := time.perf_counter() - begun) < options.seconds:
                    algorithm.train()
                rates[side].append(((counted.updates - updates) / seconds, (sampled(algorithm) - steps) / seconds))
        for algorithm, _ in built.values():
            algorithm.stop()
        found[name] = {
            side: {
                "updates_per_second": statistics.median(u for u, _ in of),
                "steps_per_second": statistics.median(s for _, s in of),
            }
            for side, of in rates.items()
        }
        base = found[name]["RLlib's default"]["updates_per_second"]
        rows += [
            [name, side, r["updates_per_second"], r["steps_per_second"], r["updates_per_second"] / base]
            for side, r in found[name].items()
        ]
    show("Updates", ["learner", "side", "updates/s", "steps/s", "of RLlib's"], rows)
    return found


# Decisions
FRESH = """
import sys, time
begun = time.perf_counter()
from atlas_ray.switching import SwitchPolicy
imported = time.perf_counter()
policy = SwitchPolicy.load(sys.argv[1])
loaded = time.perf_counter()
policy("go to the red ball\\nYou see a red ball 2 steps left")
decided = time.perf_counter()
heavy = [m for m in ("torch", "ray", "transformers") if m in sys.modules]
print(imported - begun, loaded - imported, decided - loaded, *heavy)
"""


def texts_of(count):
    """Different texts of episodes that are played at random."""
    env, rng, texts, seed = envs.make(LEVEL, max_steps=MAX_STEPS), np.random.default_rng(0), {}, 0
    while len(texts) < count:
        observation, info = env.reset(seed=seed)
        seed, over = seed + 1, False
        while not over:
            texts[f"{info['goal']}\n{observation}"] = None
            observation, _, terminated, truncated, info = env.step(str(rng.choice(env.admissible())))
            over = terminated or truncated
    return list(texts)[:count]


def random_policy(folder, encoder, width):
    """A policy with random weights, saved and loaded."""
    rng, widths = np.random.default_rng(0), [width + 2, *HIDDEN, 2]
    tensors = {}
    for i, (before, after) in enumerate(pairwise(widths)):
        tensors[f"layers.{2 * i}.weight"] = rng.normal(0, before**-0.5, (after, before)).astype(np.float32)
        tensors[f"layers.{2 * i}.bias"] = np.zeros(after, np.float32)
    SwitchPolicy(SwitchConfig(width, HIDDEN, budget=4, encoder=encoder), tensors).save(folder)
    return SwitchPolicy.load(folder)


def latency_part(options):
    texts, found = texts_of(options.texts), {}

    def note(name, decide, items):
        times = []
        for item in items:
            begun = time.perf_counter()
            decide(item)
            times.append(1e6 * (time.perf_counter() - begun))
        found[name] = {"p50_us": float(np.percentile(times, 50)), "p99_us": float(np.percentile(times, 99))}

    with tempfile.TemporaryDirectory() as folder:
        hashing = random_policy(f"{folder}/hashing", "hashing", WIDTH)
        for round_ in ("new texts", "texts seen before"):
            note(f"hashing, {round_}", lambda text: hashing(text, 2, 0.5), texts)
        hidden = random_policy(f"{folder}/hidden", "hidden", WIDTH)
        states = np.random.default_rng(0).normal(size=(len(texts), WIDTH)).astype(np.float32)
        note("QUICK's hidden state, given", lambda state: hidden("", 2, 0.5, state), states)
        try:
            encoder = make_encoder("minilm", WIDTH)
        except InputError as error:
            print(f"minilm is left out: {error}")
        else:
            minilm = random_policy(f"{folder}/minilm", "minilm", encoder.width)
            minilm(texts[0], 2, 0.5)  # loads the model
            for round_ in ("new texts", "texts seen before"):
                note(f"minilm, {round_}", lambda text: minilm(text, 2, 0.5), texts[1:])
        starts = []
        for _ in range(max(3, options.rounds)):
            begun = time.perf_counter()
            command = [sys.executable, "-c", FRESH, f"{folder}/hashing"]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()  # noqa: S603
            assert not out[3:], f"the process holds {out[3:]}"
            starts.append([time.perf_counter() - begun, *map(float, out[:3])])
    show("Decisions", ["encoder", "p50, µs", "p99, µs"], [[n, *r.values()] for n, r in found.items()])
    names = ("process", "import", "load", "first_decision")
    fresh = dict(zip(names, (1e3 * statistics.median(column) for column in zip(*starts, strict=True)), strict=True))
    show("A fresh process, without torch or Ray", ["what", "ms"], list(fresh.items()))
    return {"decisions": found, "fresh_process_ms": fresh}


# Signals
def signals_part(options):
    recipe, found = recipe_of(options.rows), {}
    specs, players = [env_spec(recipe, LEVEL, MAX_STEPS, "train")], open_players(recipe, WorkerState())

    def play(signals):
        game = TextGame(specs, players, options.rows, make_encoder("hashing", WIDTH), signals, weights=NOTHING_KNOWN)
        rng, rows, seconds, states = np.random.default_rng(0), range(options.rows), 0.0, 0
        for row in rows:
            game.begin(row, row)
        while playing := [row for row in rows if not game.episodes[row].over]:
            game.observe(playing)  # QUICK is asked
            begun = time.process_time()
            for _ in range(REPEATS):
                read.cache_clear()
                read_answer.cache_clear()
                game.observe(playing)
            seconds, states = seconds + time.process_time() - begun, states + REPEATS * len(playing)
            calls = rng.random(options.rows) < 1 / 3
            game.advance({row: int(calls[row]) for row in playing})
        used = [game.usage(row) for row in rows]
        flops = sum(u.flops for models in used for u in models) / options.rows
        return {"cpu_us": 1e6 * seconds / states, "mflops_per_episode": flops / 1e6}

    play(())  # models and texts are warm
    found = {name or "none": play((name,) if name else ()) for name in ("", *WIDTHS)}
    base = found["none"]
    rows = [[n, r["cpu_us"] - base["cpu_us"], r["mflops_per_episode"]] for n, r in found.items()]
    show("Signals", ["signal", "CPU a state, µs more", "MFLOPs an episode"], rows)
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, default=32, help="episodes side by side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement of a rate")
    parser.add_argument("--episodes", type=int, default=128, help="of the evaluation that is played twice")
    parser.add_argument("--updates-per-step", type=float, default=Switch.model_fields["updates_per_step"].default)
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--json", help="file for the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)  # passes are so small that more only hurt
    parts = {"env": env_part, "updates": updates_part, "latency": latency_part, "signals": signals_part}
    found = {name: parts[name](options) for name in options.only}
    if options.json:
        files.write_json(options.json, found)


if __name__ == "__main__":
    main()
