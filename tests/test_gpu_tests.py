"""The tests for a GPU are right themselves: all of them on a CPU, without what a bare machine lacks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "vllm", "minigrid", "scienceworld", "textworld"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import pytest
sys.exit(pytest.main(["-q", "-rs", "-o", "addopts=", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"]))
"""


@pytest.mark.slow
def test_they_pass_on_a_cpu_without_ray_and_vllm():
    here = {**os.environ, "ATLAS_RAY_GPU_TEST_DEVICE": "cpu", "PYTEST_ADDOPTS": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", CODE], cwd=ROOT, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60
    assert all("ray" in line or "vllm" in line for line in done.stdout.splitlines() if line.startswith("SKIPPED"))
