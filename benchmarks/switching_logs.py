"""The switch learnt from N logged episodes of random calls, for several N, to set beside one that learnt at play.

    python benchmarks/switching_logs.py                       # runs/switching-logs/{250,500,1000,2000}
    python benchmarks/switching_logs.py --episodes 100 --seeds 0 --steps 500 --test 20
    atlas-ray run switching                                   # the same terms at play: its rows stand beside these
    python benchmarks/switching_logs.py --recipe switching-signals --episodes 2000 --test 400

Plays the most episodes once, on training seeds, with a call at a known share of the steps, and learns from the first N
of them under the terms of a recipe, by default `switching`. What is there is kept. Each row: success on the test
episodes, differences on these same episodes, and what the estimate from the held-out logs said before.
"""

import argparse
from pathlib import Path
from statistics import fmean

from atlas_ray.agents.rollout import SWITCH_TRAIN, seed_block
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.data.records import Trajectory, read_trajectories, write_trajectories
from atlas_ray.recipe.loading import load
from atlas_ray.report.headlines import with_interval
from atlas_ray.report.outcomes import compared
from atlas_ray.report.run import Run
from atlas_ray.rundir.files import read_json
from atlas_ray.rundir.layout import RunLayout
from atlas_ray.switching.policies import PolicySpec
from atlas_ray.switching.stage import switch_stage
from atlas_ray.switching.tasks import PlayTask, engine_leases, rollout_chunk

AT_A_TIME = 64


def play(recipe, count, rate):
    """Episodes of random calls as trajectories that say who acted and how likely that was."""
    first = seed_block(recipe.seed, SWITCH_TRAIN) + 50_000
    policy = PolicySpec("random", "random", action=1, rate=rate)
    with engine_leases(recipe) as leases:
        for begin in range(first, first + count, AT_A_TIME):
            seeds = tuple(range(begin, min(begin + AT_A_TIME, first + count)))
            task = PlayTask(recipe, policy, None, seeds, "train", None, leases, record=True)
            for row, _ in rollout_chunk(task, WorkerState()):
                if not row["lost"]:
                    yield trajectory(row, rate)


def trajectory(row, rate):
    """A line of our format."""
    steps = [
        {**step, "probability": rate if step["actor"] != "quick" else 1 - rate} for step in row["episode"]["steps"]
    ]
    return Trajectory.model_validate(
        {
            "id": f"{row['level']}/{row['seed']}",
            "env": row["episode"]["env"],
            "task": row["level"],
            "seed": row["seed"],
            "instruction": row["episode"]["instruction"],
            "steps": steps,
            "score": row["score"],
            "success": row["success"],
            "source": "random",
        }
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--episodes", nargs="+", type=int, default=[250, 500, 1000, 2000])
    parser.add_argument("--rate", type=float, default=0.3, help="share of the steps that are calls in the logs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--recipe", default="switching")
    parser.add_argument("--seed", type=int, default=0, help="of the recipe: other logs, other test episodes")
    parser.add_argument("--budgets", type=int, nargs="+", help="by default the recipe's, for percentages 1, 2, 3")
    parser.add_argument("--out", type=Path, help="by default runs/RECIPE-logs")
    options = parser.parse_args()
    given = load(options.recipe).model_copy(update={"seed": options.seed})
    out = options.out or Path(f"runs/{options.recipe}-logs{options.seed or ''}")
    budgets = options.budgets or [n for n in given.switch.budgets if isinstance(n, int)] or [1, 2, 3]
    whole = out / f"log-{options.rate:g}-{max(options.episodes)}.jsonl"
    if not whole.is_file():
        write_trajectories(whole, play(given, max(options.episodes), options.rate))
    trajectories = read_trajectories(whole)
    heads = ["logged episodes", "policy", "success", "less DEEPTHINK", "less random at its rate", "calls", "MFLOPs"]
    heads += ["the logs said of success", "effective episodes"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for count in options.episodes:
        root = out / str(count)
        log = root / "log" / "log.jsonl"
        if not log.is_file():
            write_trajectories(log, trajectories[:count])
        terms = {"logs": [str(log.parent)], "seeds": options.seeds, "steps": options.steps, "budgets": budgets}
        terms |= {"test_episodes": options.test, "baselines": ["random"], "rates": []}
        recipe = given.model_copy(update={"workers": 0, "switch": given.switch.model_copy(update=terms)})
        rows = switch_stage(recipe, root / "run", lambda line: None)
        told = read_json(RunLayout(root / "run").switch_estimates)
        ends = Run(root / "run", None, None).outcomes.policies
        for row in rows:
            said = [t for t in told if t["policy"] == row["name"] and t.get("doubly_robust", {}).get("success")]
            low, high = row["ci95"]
            cells = [f"{count:,}", row["name"], f"{row['success']:.2f} [{low:.2f}, {high:.2f}]"]
            limit = f", n={row['budget']:.0f}" if row.get("budget") else ""
            twin = f"random(p={row['deepthink_share']:.2f}{limit})" if row["name"].startswith("londi") else ""
            for other in ("always-deepthink", twin):
                found = compared(ends[row["name"]], ends.get(other, {}))
                cells.append("" if found is None or other == row["name"] else with_interval(found))
            cells += [f"{row['deepthink_calls_per_episode']:.2f}", f"{row['compute'] / 1e6:,.0f}"]
            cells.append(", ".join(f"{t['doubly_robust']['success']['mean']:.2f}" for t in said) or "–")
            cells.append(f"{fmean(t['ess'] for t in said):.0f}" if said else "–")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
