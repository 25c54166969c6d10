"""Doctor sees what is really there."""

import errno
import os
import shutil
import socket
import stat
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from atlas_ray.cluster import container
from atlas_ray.cluster.address import host_of
from atlas_ray.doctor import facts as doctor_facts
from atlas_ray.doctor.facts import is_loopback


def test_addresses():
    assert host_of("ray://head:10001") == ("head", 10001)
    assert host_of("[::1]:6379") == ("::1", 6379)
    assert host_of("auto") == ("", None)
    assert [is_loopback(h) for h in ("127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "::", "10.0.0.1")] == [
        True
    ] * 3 + [False] * 3


def test_ports_and_who_reaches_them(monkeypatch):
    with socket.socket() as inside, socket.socket() as outside:
        inside.bind(("127.0.0.1", 0))
        outside.bind(("0.0.0.0", 0))
        inside.listen()
        outside.listen()
        here, everywhere = inside.getsockname()[1], outside.getsockname()[1]
        monkeypatch.setattr(doctor_facts, "RAY_PORTS", {here: "GCS", everywhere: "dashboard"})
        assert doctor_facts._listening() == {here: "127.0.0.1", everywhere: "0.0.0.0"}
    assert doctor_facts._listening() == {}


class Dashboard(BaseHTTPRequestHandler):
    def do_GET(self):
        given = self.headers.get("Authorization")
        self.send_response(200 if given == "Bearer right" else 401 if given is None else 403)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_head_that_takes_jobs_is_asked_with_a_token_and_without():
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_address[1]}"
        assert doctor_facts._says(where, "right") == (401, 200)
        assert doctor_facts._says(where, "wrong") == (401, 403)
        server.shutdown()
    assert doctor_facts._says(where, "right") is None
    assert doctor_facts._dashboard({"RAY_ADDRESS": "http://head:8265/"}, {}) == "http://head:8265"
    assert doctor_facts._dashboard({"RAY_ADDRESS": "10.0.0.1:6379"}, {8265: "::"}) == "http://127.0.0.1:8265"
    assert doctor_facts._dashboard({}, {}) is None


def test_a_place_where_no_file_can_be_made_is_not_written_to(tmp_path, monkeypatch):
    assert doctor_facts._disk(tmp_path)[0] > 0

    def full(**options):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(doctor_facts.tempfile, "TemporaryFile", full)
    assert doctor_facts._disk(tmp_path) is None


def test_limits_of_containers(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "CGROUP_ROOT", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert container.cgroup_cpu_quota() is None
    assert container.usable_cpus() == 64
    free = doctor_facts._memory()
    (tmp_path / "memory").mkdir()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert container.cgroup_cpu_quota() == 1.5
    assert container.usable_cpus() == 1
    assert container.memory_limit() is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert container.cgroup_cpu_quota() is None
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert container.cgroup_cpu_quota() == 0.5
    assert container.usable_cpus() == 1
    (tmp_path / "cpu.max").write_text("400000 100000\n")
    assert container.usable_cpus() == 4
    (tmp_path / "memory.max").write_text("200000000\n")
    (tmp_path / "memory.current").write_text("150000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 30000000\n")
    assert container.memory_limit() == 200000000
    assert doctor_facts._memory() == 80000000 < free


def test_a_token_that_others_may_read():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        token = folder / "auth_token"
        token.write_text("x" * 64)
        folder.chmod(0o755)
        token.chmod(0o644)
        assert doctor_facts._open_to_others(token)
        token.chmod(0o600)
        assert not doctor_facts._open_to_others(token)
        token.chmod(0o644)
        folder.chmod(0o700)
        assert not doctor_facts._open_to_others(token), "nobody gets into the folder"
    finally:
        shutil.rmtree(folder)


def test_gpus_and_java_are_asked_for_by_their_programs(tmp_path, monkeypatch):
    smi, java = tmp_path / "nvidia-smi", tmp_path / "java"
    smi.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 550.54'\n")
    java.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    for program in (smi, java):
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert doctor_facts._gpus() == (["NVIDIA L4, 23034 MiB, 550.54"], "")
    assert doctor_facts._driver_cuda() is None
    smi.write_text("#!/bin/sh\necho '| NVIDIA-SMI 550.54  Driver Version: 550.54  CUDA Version: 12.4 |'\n")
    assert doctor_facts._driver_cuda() == "12.4"
    assert doctor_facts.java_version() == "1.8.0_402"
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
    assert doctor_facts._gpus() == ([], "nvidia-smi: NVIDIA-SMI has failed")
    monkeypatch.setenv("PATH", "")
    assert doctor_facts._gpus() == ([], "")
    assert doctor_facts.java_version() is None


TORCH = """
class Values(list):
    def min(self): return min(self)
    def max(self): return max(self)

def ones(count, device): return Values([1.0, 1.0])
def zeros_like(other): return Values([0.0, 0.0])
"""
NCCL = """
def version(): return 2, 27, 7
def all_reduce(inputs, outputs):
    for row in outputs: row[:] = [SUM] * 2
"""


def test_nccl_sums_over_all_gpus_or_says_why_not(tmp_path, monkeypatch):
    """With a torch that is made up: what is run, what is read."""
    cuda = tmp_path / "torch" / "cuda"
    cuda.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").write_text(f"{TORCH}\nfrom . import cuda\n")
    (cuda / "__init__.py").write_text("def device_count(): return 4\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a file of the same length in the same second would not be read
    (cuda / "nccl.py").write_text(NCCL.replace("SUM", "4.0"))
    assert doctor_facts._nccl() == ("2.27.7", "")
    (cuda / "nccl.py").write_text(NCCL.replace("SUM", "3.0"))
    assert doctor_facts._nccl() == ("", "AssertionError: the sum is wrong on GPU [0, 1, 2, 3]")
    monkeypatch.setattr(doctor_facts, "_ALL_GPUS", 0.01)
    assert doctor_facts._nccl() == ("", "no answer within 0.01 seconds")
