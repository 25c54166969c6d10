"""Many environments against a simulated engine, what a result costs the driver, and the driver's memory.

    python benchmarks/scaling_rollout.py curve             # an engine in every worker, 1 to 256 environments
    python benchmarks/scaling_rollout.py curve --shared    # one engine actor for all workers
    python benchmarks/scaling_rollout.py driver            # CPU time of the driver for each result
    python benchmarks/scaling_rollout.py memory            # resident memory of the driver over 16,000 episodes

The engine sleeps 50 ms a pass and 0.5 ms a row and answers at random; everything else is what `atlas-ray evaluate`
runs: BabyAI, the agent with its prompts, the workers, the streams of results, the episode file, the rates.
"""

import argparse
import gc
import os
import resource
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from atlas_ray.agents.rollout import EnvSpec
from atlas_ray.agents.spec import AgentSpec
from atlas_ray.agents.throughput import CounterSample, ThroughputMeter
from atlas_ray.cluster.workers import ActorPool
from atlas_ray.engines import Capabilities, EngineLease, RemoteEngine
from atlas_ray.engines.base import Batches, EngineCounters, check, finish
from atlas_ray.engines.reloading import Reloaded
from atlas_ray.engines.server import EngineServer
from atlas_ray.models.loading import load_tokenizer
from atlas_ray.recipe.loading import Act, Engine
from atlas_ray.rundir.files import RunLog, append_jsonl
from atlas_ray.stages import scored_episodes as evaluation

MODEL = "tiny-quick"  # of which only the tokenizer is used
LEVEL = "GoToLocalS6N4"
POINTS = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 16), (4, 16), (8, 16), (16, 16), (8, 32), (4, 64))
TICK = os.sysconf("SC_CLK_TCK")


class SimulatedEngine(Batches):
    """Takes its time and scores at random, the same prompt always the same."""

    def __init__(self, slots, base, row):
        self.tokenizer, self.capabilities, self.slots = load_tokenizer(MODEL), Capabilities(), slots
        self.context, self.parameters, self.computed_tokens, self.counters = 2048, 1, [0] * slots, EngineCounters()
        self._base, self._row, self._taken = base, row, []

    def submit(self, request):
        check(request, self.context)
        self._taken.append(request)

    def step(self):
        batch, self._taken = self._taken, []
        if batch:
            time.sleep(self._base + self._row * len(batch))
        for request in batch:
            drawn = torch.Generator().manual_seed(sum(request.prompt))
            request.scores = torch.rand(len(request.candidates), generator=drawn).log()
        return batch

    def answer(self, requests):
        return finish(self, requests)

    def forget(self, slot):
        pass

    def close(self):
        pass


@dataclass(frozen=True)
class SimulatedSpec(AgentSpec):
    base: float = 0.05
    row: float = 0.0005

    def new_engine(self, worker):
        return RemoteEngine(self.leases[worker]) if self.leases else SimulatedEngine(self.slots, self.base, self.row)


class SimulatedServer(EngineServer):
    """The project's engine actor around a simulated engine with these two latencies."""

    def __init__(self, base, row):
        self._latencies = base, row
        super().__init__(Engine())

    def _open(self, wanted):
        return SimulatedEngine(wanted.slots, *self._latencies), Reloaded(anew=True)


class Quiet:
    """A progress line that says nothing."""

    def advance(self, count, note):
        pass


class Receiver:
    """Does with every result what the evaluation does, in a run directory of its own."""

    def __init__(self, folder, engines):
        self.path, self.ends = Path(folder) / "episodes.jsonl", evaluation.Outcomes(0, 10_000_000)
        self.flow = ThroughputMeter("evaluate", RunLog(folder), Quiet(), engines)

    def __call__(self, row, seen):
        append_jsonl(self.path, [row])
        self.ends.note(row)
        self.flow.add(seen, row["steps"], f"{row['model']} on {row['level']}")


def cpu(pids):
    """Seconds of CPU time that processes took so far."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


def ray_pids():
    """Ray's own processes below this one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            name = (entry / "cmdline").read_bytes().split(b"\0")[0]
        except (OSError, IndexError):
            continue
        if parent == str(os.getpid()) and name.endswith((b"raylet", b"gcs_server")):
            found.append(int(entry.name))
    return found


def resident():
    """Resident MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


class Watch:
    """Between the first and the last :meth:`see`: answers a second by the engines' own count, and cores in use."""

    def __init__(self, groups):
        self.groups, self.answers, self.times = groups, {}, []

    def see(self, counters):
        now = time.monotonic()
        first, last = self.answers.get(counters.id, ((now, counters.answered), (now, counters.answered)))
        self.answers[counters.id] = first, max(last, (now, counters.answered), key=lambda pair: pair[1])
        if len(self.times) < 2 or now - self.times[-1][0] > 0.5:
            self.times[1:] = [(now, {name: cpu(pids) for name, pids in self.groups.items()})]

    def rate(self):
        return sum((b[1] - a[1]) / max(1e-9, b[0] - a[0]) for a, b in self.answers.values())

    def cores(self):
        (begun, before), (ended, after) = self.times
        return {name: (after[name] - before[name]) / (ended - begun) for name in self.groups}


def point(pool, options, workers, envs, number):
    """Play with ``workers`` x ``envs`` environments; a row of the table. Its middle is measured, when all play."""
    import ray

    count, base, row = workers * envs, options.base / 1000, options.row / 1000
    ideal = count / (base + row * (count if options.shared else envs))
    spec = SimulatedSpec(MODEL, Engine(), Act(decide="score"), "action", envs, base=base, row=row)
    groups, server = {"driver": [os.getpid()], "workers": []}, None
    if options.shared:
        server = ray.remote(SimulatedServer).options(num_cpus=0, max_concurrency=1000).remote(base, row)
        spec = replace(
            spec, leases=tuple(EngineLease(server, MODEL, w * envs, envs, 60.0, count) for w in range(options.workers))
        )
        groups["engine"] = [ray.get(server.pid.remote())]
    watch = Watch(groups | {"Ray": ray_pids()})
    env, share = EnvSpec(LEVEL, {"max_steps": 20}), max(4 * envs, round(options.seconds * ideal / workers / 18))
    tasks = [
        evaluation._Task(f"{number}/{w}", spec, tuple((LEVEL, env, w * 100_000 + s) for s in range(share)))
        for w in range(workers)
    ]
    names = set()
    with tempfile.TemporaryDirectory() as folder:
        receive = Receiver(folder, 1 if options.shared else workers)
        for finished, (_, (played, seen)) in enumerate(
            pool.stream(evaluation._play_task, tasks, evaluation._remaining), start=1
        ):
            receive(played, seen)
            names.add(seen.worker)
            if 0.3 < finished / (share * workers) < 0.75:
                watch.groups["workers"] = watch.groups["workers"] or [int(n.partition("/")[0]) for n in names]
                watch.see(seen.counters)
    if server is not None:
        ray.kill(server)
    rate, cores = watch.rate(), watch.cores()
    numbers = " | ".join(f"{c:.2f}" for c in cores.values())
    each = sum(cores.values()) / rate * 1000
    return f"| {workers} x {envs} | {count} | {ideal:.0f} | {rate:.0f} | {rate / ideal:.2f} | {numbers} | {each:.2f} |"


def curve(options):
    """Throughput over the number of environments."""
    points = [p for p in POINTS if p[0] <= options.workers and p[0] * p[1] <= options.most]
    where = "one engine actor" if options.shared else "an engine in every worker"
    print(f"{options.base:g} ms a pass and {options.row:g} ms a row, {where}")
    engine = " engine |" if options.shared else ""
    print(
        "| workers x environments | environments | ideal steps/s | steps/s | of it | cores: driver | workers |"
        f"{engine} Ray | CPU, ms a step |"
    )
    print("|---" * (9 + options.shared) + "|")
    with ActorPool(options.workers, cpus=0.1) as pool:
        warm(pool, options.workers)
        for number, (workers, envs) in enumerate(points):
            print(point(pool, options, workers, envs, number), flush=True)


def _results(task, kept):
    """As many results as the task asks for, each with a text of so many bytes."""
    results, size = task
    for number in range(results):
        yield {"number": number, "text": "x" * size}


def _whole(task, received):
    return None


def driver(options):
    """CPU time of this process for each result, whoever made it."""
    print("| tasks | results of each | bytes of a result | results/s | driver's CPU, ms a result |")
    print("|---|---|---|---|---|")
    with ActorPool(options.workers, cpus=0.1) as pool:
        warm(pool, options.workers)
        for tasks, results, size in (
            (1000, 1, 100),
            (1, 2000, 100),
            (options.workers, 200, 100),
            (options.workers, 200, 10_000),
            (options.workers, 50, 200_000),
        ):
            begun, used, count = time.perf_counter(), time.process_time(), 0
            for _ in pool.stream(_results, [(results, size)] * tasks, _whole):
                count += 1
            seconds, used = time.perf_counter() - begun, time.process_time() - used
            row = f"| {tasks:,} | {results:,} | {size:,} | {count / seconds:.0f} | {used / count * 1000:.2f} |"
            print(row, flush=True)
    print("\n| engines | driver's CPU to note an episode, ms |")
    print("|---|---|")
    for engines in (1, 16, 256):
        with tempfile.TemporaryDirectory() as folder:
            receive = Receiver(folder, engines)
            gauges = [CounterSample(EngineCounters(answered=1), f"{n}/1", 0, {"ok": 1}) for n in range(engines)]
            used = time.process_time()
            for number in range(2000):
                receive(episode(number), gauges[number % engines])
            print(f"| {engines} | {(time.process_time() - used) / 2000 * 1000:.2f} |", flush=True)


def episode(number):
    """A row of the episode file, with a trajectory of 20 steps."""
    step = {
        "observation": "a red ball 2 steps forward, a grey key 1 step left",
        "thought": None,
        "action": "go forward",
    }
    row = {"model": "sim", "level": LEVEL, "seed": number, "success": False, "score": 0.0, "steps": 20, "error": None}
    return row | {"lost": False, "attempts": 1, "trajectory": {"steps": [dict(step) for _ in range(20)]}}


def _episodes(task, kept):
    for number, (_, _, seed) in enumerate(task.episodes, start=1):
        yield (
            episode(seed),
            CounterSample(EngineCounters(id=task.key, answered=number), f"{task.key}/1", 0, {"ok": number}),
        )


def memory(options):
    """Resident memory of this process while two workers stream episodes into it."""
    spec, env, most = SimulatedSpec(MODEL, Engine(), Act(), "action", 16), EnvSpec(LEVEL), 16_000
    tasks = [
        evaluation._Task(f"sim/{w}", spec, tuple((LEVEL, env, seed) for seed in range(w, most, 2))) for w in range(2)
    ]
    print("| episodes | driver, MiB | episode file, MiB |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, ActorPool(2, cpus=0.1) as pool:
        receive = Receiver(folder, 2)
        for count, (_, result) in enumerate(pool.stream(_episodes, tasks, evaluation._remaining), start=1):
            receive(*result)
            if count in (100, 500, 1000, 2000, 4000, 8000, most):
                gc.collect()
                print(f"| {count:,} | {resident():.1f} | {receive.path.stat().st_size / 2**20:.1f} |", flush=True)


def _import(task, kept):
    yield len(evaluation.__name__)


def warm(pool, workers):
    """Start all actors and let them import everything."""
    for _ in pool.stream(_import, range(4 * workers)):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("curve", "driver", "memory"))
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--base", type=float, default=50.0, help="ms a pass")
    parser.add_argument("--row", type=float, default=0.5, help="ms a row")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--most", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=15.0, help="of a point, about")
    torch.set_num_threads(1)
    options = parser.parse_args()
    {"curve": curve, "driver": driver, "memory": memory}[options.what](options)
