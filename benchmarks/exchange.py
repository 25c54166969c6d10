"""Memory and time of an import, a selection on it, and its export with flags: records of AgentTraj-L, made here.

    python benchmarks/exchange.py                       # 2,000 records of 20 steps
    python benchmarks/exchange.py --records 10000

Every step is a process of its own; its memory is the most that it had in use, less that of one that does nothing.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = "a red blue box key door drawer opens holds nothing apple lamp north of you see go take on in the".split()  # noqa: SIM905
IMPORTS = """
import sys, time
from pathlib import Path
from atlas_ray import pipeline, preflight, selection
from atlas_ray.data import exchange
from atlas_ray.recipe import loading as recipe
from atlas_ray.stages import collect
"""
BODIES = {
    "nothing": "",
    "import": "exchange.import_file(sys.argv[1], sys.argv[2])",
    "select": """
select = {"selectors": ["random"], "fraction": 0.3}
made = recipe.Recipe.model_validate({"name": "x", "collect": {"file": sys.argv[1]}, "select": select})
pipeline.run(made, Path(sys.argv[2]), ('collect', 'select'))
""",
    "export": "exchange.export_run(sys.argv[2], 'random', sys.argv[3], None, sys.argv[2] + '/out')",
}
# a process inherits the peak of the one that starts it, so a small one stands between
PEAK = (
    "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True);"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // (2**20 if sys.platform == 'darwin' else 2**10))"
)


def records(count, steps=20):
    """Made records, the same every time: observations of about 600 characters."""
    rng = random.Random(0)
    for number in range(count):
        turns = [
            {"from": "human", "loss": None, "value": "You are in a house. Answer with Thought and Action. " * 10},
            {"from": "gpt", "loss": False, "value": "OK. I'll follow your instructions and try my best."},
        ]
        for _ in range(steps):
            observation = " ".join(rng.choices(WORDS, k=145))
            thought, action = " ".join(rng.choices(WORDS, k=20)), " ".join(rng.choices(WORDS, k=3))
            turns.append({"from": "human", "loss": None, "value": observation})
            turns.append({"from": "gpt", "loss": True, "value": f"Thought:\n{thought}\n\nAction:\n{action}"})
        turns.append({"from": "human", "loss": None, "value": "Done. " * 100})
        yield {"item_id": f"house_{number}", "conversations": turns}


def made(folder, count):
    """The same records as an array, as lines, and as a folder of ten files."""
    rows = [json.dumps(r) for r in records(count)]
    array, lines, several = folder / "array.json", folder / "lines.jsonl", folder / "folder"
    array.write_text("[" + ", ".join(rows) + "]")
    lines.write_text("\n".join(rows) + "\n")
    several.mkdir()
    for part in range(10):
        share = rows[part * count // 10 : (part + 1) * count // 10]
        (several / f"{part}.json").write_text("[" + ", ".join(share) + "]")
    return array, lines, several


def measured(step, *arguments):
    """Seconds and peak in MB of one step."""
    code = f"{IMPORTS}begun = time.perf_counter()\n{BODIES[step]}\nprint('seconds', time.perf_counter() - begun)"
    command = [sys.executable, "-c", PEAK, "-c", code, *map(str, arguments)]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()  # noqa: S603
    return float(told[told.index("seconds") + 1]), int(told[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = made(folder, options.records)
        base = measured("nothing")[1]
        print(f"{options.records} records, {paths[0].stat().st_size / 2**20:.0f} MB; doing nothing takes {base} MB")
        for path in paths:
            for step, *more in (("import",), ("select",), ("export", "agenttraj"), ("export", "messages")):
                run = folder / f"{path.name}-{'import' if step == 'import' else 'run'}"
                seconds, peak = measured(step, path, run, *more)
                print(f"  {path.name:12} {' '.join([step, *more]):17} {seconds:6.1f} s {peak - base:6} MB", flush=True)


if __name__ == "__main__":
    main()
