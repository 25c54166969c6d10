"""The benchmark of a GPU: its tables from made-up figures, and all of it on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_ray.finetune.flops import Shape

ROOT = Path(__file__).parent.parent
LLAMA = Shape(32, 4096, 32, 8, 128, 14336, 128_256)
ABOUT = {"name": "NVIDIA X", "torch": "2.13.0", "device": "cuda", "gpus": 4, "checkpointing": True, "rank": 16}
ABOUT |= {"peak_tflops": 100.0, "peak_from": "data sheet", "steps": 6, "batch": 32}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_tables

    return gpu_tables


def row(contestant, way="full", **more):
    return {"shape": "8b", "way": way, "contestant": contestant, "micro_tokens": 16384, **more}


def test_what_is_measured_stands_beside_its_ceiling_and_what_was_computed(tables):
    ours = tables.judged(row("ours", tokens_per_second=2e3, flops_per_token=5e10, peak_gb=47.25), LLAMA, ABOUT)
    assert (ours["ceiling"], ours["of_peak"]) == (8e3, 0.25)
    assert ours["computed_gb"] == pytest.approx(50, abs=0.5), "as in docs/scaling.md"
    alone = {**ABOUT, "gpus": 1}
    assert tables.judged(row("ours", "lora"), LLAMA, alone)["computed_gb"] == pytest.approx(26, abs=0.5)
    assert "computed_gb" not in tables.judged(row("ours"), LLAMA, {**ABOUT, "checkpointing": False})


def test_the_tables_have_a_line_for_everything_that_was_tried(tables):
    training = [
        row("ours", tokens_per_second=3000.0, flops_per_token=5e10, peak_gb=47.25),
        row("plain, packed", tokens_per_second=2000.0, flops_per_token=6e10, peak_gb=60.0),
        row("TRL, packed", tokens_per_second=1500.0, peak_gb=70.0),
        row("ours", "lora", failed="torch.OutOfMemoryError: CUDA out of memory | and more"),
    ]
    playing = {"tokens_per_second": 900.0, "bare_tokens_per_second": 1000.0, "decisions_per_second": 30.0}
    rollouts = [
        {"shape": "8b", "engine": "vllm", "cached": 0.9, "ceiling": 1e5, **playing},
        {"shape": "tiny", "engine": "transformers", "failed": "needs minigrid"},
    ]
    judged = [tables.judged(r, LLAMA, ABOUT) for r in training]
    lines = tables.markdown({"machine": ABOUT, "training": judged, "rollouts": rollouts}).splitlines()
    assert lines[0].startswith("4 x NVIDIA X, torch 2.13.0, peak 100.0 TFLOP/s (data sheet), 6 optimiser steps")
    assert lines[4] == "| 8b | full | ours | 3,000 | 1.50 | 0.38 | 8,000 | 3,200 | 47.2 | 50.1 | 16,384 |"
    assert lines[5].startswith("| 8b | full | plain, packed | 2,000 | 1.00 | 0.30 | 6,667 | 2,667 | 60.0 |")
    assert lines[6].startswith("| 8b | full | TRL, packed | 1,500 | 0.75 |  |  |  | 70.0 |")
    assert lines[7].startswith("| 8b | lora | ours | failed: torch.OutOfMemoryError: CUDA out of memory / and more |")
    assert lines[11] == "| 8b | vllm | 30.0 | 900 | 1,000 | 0.90 | 100,000 | 0.90 |"
    assert lines[12].startswith("| tiny | transformers | failed: needs minigrid |")
    for block in (lines[2:8], lines[9:13]):
        assert len({line.count("|") for line in block}) == 1, "every line has as many cells"


@pytest.mark.slow
@pytest.mark.parametrize("gpus", [1, 2])
def test_the_benchmark_runs_on_a_cpu(tmp_path, gpus):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--shapes", "tiny", "--out", tmp_path]
    command += ["--batch", "4", "--steps", "3", "--episodes", "4", "--micro-tokens", "4096", "--gpus", str(gpus)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["training"]) == (6 if gpus == 1 else 4)
    for each in (*found["training"], *found["rollouts"]):
        assert each["tokens_per_second"] > 0, each
    assert done.stdout.strip() == (tmp_path / "gpu.md").read_text().strip()
