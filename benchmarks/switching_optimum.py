"""How near the learner gets to exactly known optima: games of ``tests/support/switch_mdps.py``, costs, budgets, seeds.

    python benchmarks/switching_optimum.py                        # all of it, two trainings at a time
    python benchmarks/switching_optimum.py --mdps chain-12 tree-4 --algorithms dqn --seeds 3 --jobs 1
    python benchmarks/switching_optimum.py --full                 # every training to its end
    python benchmarks/switching_optimum.py --show                 # the tables of what is done

Every training appends a line to ``--out``; started again, only what is not in it is trained. The share of the optimum
is that of the greedy policy that the training kept, by exact evaluation: nothing is sampled but training episodes. The
evaluations that choose what is kept are exact too, so this measures the learner and not the luck of an evaluation. A
training that reaches 99 % is ended there, since what is kept can only get better, unless ``--full`` is given; ``last``
is what such a one ends with. A switch is optimal where none of its steps is worth less than the best one.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

import switch_mdps
from switch_mdps import MDPS

from atlas_ray.cluster.workers import ActorPool
from atlas_ray.recipe.loading import Switch
from atlas_ray.rundir import files
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.switching.train import train_switch

GAMMA = 0.98
COSTS, BUDGETS, ALGORITHMS, SEEDS = [0.0, 0.02, 0.05, 0.2], [0, 1, 2, 4], ["dqn", "sac"], 5
GOOD = 0.99


@dataclass(frozen=True)
class Task:
    """One training."""

    mdp: str
    cost: float | None
    budget: int | None
    algorithm: str
    seed: int
    steps: int
    full: bool = False

    @property
    def terms(self):
        return f"budget {self.budget}" if self.cost is None else f"cost {self.cost:g}"


class Enough(Exception):
    """The policy that is kept is good."""


def settings_of(task):
    mdp = MDPS[task.mdp]
    models = [{"model": f"model {i}", "weight": weight} for i, weight in enumerate(mdp.weights)]
    return Switch(
        models=models,
        levels=["GoToLocal"],  # a recipe needs one; nothing here plays it
        costs=[0.0],
        algorithm=task.algorithm,
        num_envs=switch_mdps.ROWS,
        gamma=GAMMA,
        steps=task.steps,
        evaluate_every=500,
    )


def run(task):
    """Train and evaluate; a row of results."""
    from atlas_ray.switching.algorithm import HIDDEN

    mdp, cost = MDPS[task.mdp], task.cost or 0.0
    best = float(switch_mdps.optimum(mdp, GAMMA, cost, task.budget)[0, -1])
    terms = SwitchConfig(mdp.code.shape[1], HIDDEN, mdp.models, task.budget, task.cost)
    history = []

    def share(policy):
        return switch_mdps.value(mdp, policy.greedy, GAMMA, cost, task.budget) / best

    def note(row):
        history.append(row)
        if row["objective"] >= GOOD and not task.full:
            raise Enough

    with tempfile.TemporaryDirectory() as folder:
        begun, last = time.perf_counter(), None
        try:
            policy = train_switch(
                Path(folder) / "switch",
                settings_of(task),
                terms,
                switch_mdps.maker(task.mdp, task.budget, cost),
                lambda policy: {"objective": share(policy)},
                100_000 * task.seed,
                task.seed,
                note,
            )
            last = share(SwitchPolicy.load(Path(folder) / "switch" / "last"))
        except Enough:
            policy = SwitchPolicy.load(Path(folder) / "switch.train" / "best")
        seconds = time.perf_counter() - begun
    table = switch_mdps.table(mdp, policy.greedy, task.budget)
    best_table = switch_mdps.best_table(mdp, GAMMA, cost, task.budget)
    lost = switch_mdps.mistakes(mdp, table, GAMMA, cost, task.budget)
    return {
        **asdict(task),
        "optimum": best,
        "share": share(policy),
        "last": last,
        "reached_at": next((row["step"] for row in history if row["objective"] >= GOOD), None),
        "calls": [[*place, model] for place, model in switch_mdps.switch_set(mdp, table, task.budget).items()],
        "best_calls": [[*p, m] for p, m in switch_mdps.switch_set(mdp, best_table, task.budget).items()],
        "mistakes": [[*p, int(table[p]), int(best_table[p]), value] for p, value in lost.items()],
        "seconds": round(seconds, 1),
    }


def job(task, kept):
    yield run(task)


def tasks_of(options):
    terms = [(cost, None) for cost in options.costs] + [(None, budget) for budget in options.budgets]
    return [
        Task(mdp, *pair, algorithm, seed, options.steps, options.full)
        for mdp in options.mdps
        for pair in terms
        for algorithm in options.algorithms
        for seed in range(options.seeds)
    ]


def train_all(tasks, out, jobs):
    """The rows of all tasks, in their order."""
    done = {Task(**{k: row[k] for k in Task.__annotations__}): row for row in files.recover_jsonl(out)}
    left = [task for task in tasks if task not in done]
    begun = time.monotonic()
    with ActorPool(jobs if jobs > 1 else 0) as pool:
        for number, (task, row) in enumerate(pool.stream(job, left), start=1):
            files.append_jsonl(out, [row])
            done[task] = row
            more = (time.monotonic() - begun) / number * (len(left) - number)
            note = f"{task.mdp}, {task.terms}, {task.algorithm}, seed {task.seed}: {row['share']:.2%}"
            print(f"  {number}/{len(left)}, about {more / 60:.0f} min left · {note}", file=sys.stderr, flush=True)
    return [done[task] for task in tasks if task in done]


def percent(share):
    return f"{100 * share:.1f}"


def show(rows):
    """Markdown: a line for each game, terms and algorithm, and below it every step that is not the best."""
    groups = {}
    for row in rows:
        terms = f"budget {row['budget']}" if row["cost"] is None else f"cost {row['cost']:g}"
        groups.setdefault((row["mdp"], terms, row["algorithm"], row["steps"]), []).append(row)
    print(
        "| game | terms | learner | steps | optimum | ≥ 99 % | optimal | share of the optimum, % | last, % | at step |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (mdp, terms, algorithm, steps), group in groups.items():
        of = f"of {len(group)}"
        reached = [row["reached_at"] for row in group if row["reached_at"]]
        cells = [
            *(mdp, terms, algorithm, f"{steps:,}", f"{group[0]['optimum']:.4f}"),
            f"{sum(row['share'] >= GOOD for row in group)} {of}",
            f"{sum(not row['mistakes'] for row in group)} {of}",
            " ".join(percent(row["share"]) for row in group),
            " ".join("–" if row["last"] is None else percent(row["last"]) for row in group),
            f"{statistics.median(reached):.0f}" if reached else "–",
        ]
        print(f"| {' | '.join(cells)} |")
    print(f"\n{sum(row['share'] >= GOOD for row in rows)} of {len(rows)} trainings reach 99 % of the optimum\n")
    for (mdp, terms, algorithm, _), group in groups.items():
        for row in (row for row in group if row["mistakes"]):
            wrong = "; ".join(
                f"state {state}{f' with {left} left' if row['cost'] is None else ''}: {took} for {best} (−{lost:.4f})"
                for state, left, took, best, lost in row["mistakes"]
            )
            print(f"- {mdp}, {terms}, {algorithm}, seed {row['seed']}: model in {wrong}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mdps", nargs="+", choices=list(MDPS), default=list(MDPS))
    parser.add_argument("--costs", nargs="*", type=float, default=COSTS)
    parser.add_argument("--budgets", nargs="*", type=int, default=BUDGETS)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--full", action="store_true", help="end no training early")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, each on one core")
    parser.add_argument("--out", default="runs/switching_optimum.jsonl")
    parser.add_argument("--show", action="store_true", help="train nothing")
    options = parser.parse_args()
    tasks = tasks_of(options)
    if options.show:
        wanted = set(tasks)
        rows = [
            r for r in files.recover_jsonl(options.out) if Task(**{k: r[k] for k in Task.__annotations__}) in wanted
        ]
    else:
        rows = train_all(tasks, options.out, options.jobs)
    show(rows)


if __name__ == "__main__":
    main()
