"""A Ray head with ports, a temporary directory and a token of its own, as on a cluster that is up."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
RAY, SERVE = (str(Path(sys.executable).with_name(name)) for name in ("ray", "serve"))
STOPPING = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}  # seconds between SIGTERM and SIGKILL


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


class Head:
    """A Ray head with ports, a temporary directory and a token of its own. ``variables``: in its environment, too."""

    def __init__(self, **variables):
        self.folder, self.nodes = Path(tempfile.mkdtemp(prefix="aj")), []
        token = self.folder / ".ray" / "auth_token"  # where Ray looks for it by itself
        token.parent.mkdir()
        token.write_text(uuid.uuid4().hex + uuid.uuid4().hex)
        gcs, dashboard, agent = free_ports(3)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        # the `python` of a job is the first one on its head's path
        clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
        self.stranger = {
            **clean,
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "HOME": str(self.folder / "s"),
            **variables,
        }
        self.environment = {**self.stranger, "HOME": str(self.folder)}
        self.address = f"http://127.0.0.1:{dashboard}"
        self.process = subprocess.Popen(
            [
                *(RAY, "start", "--head", "--block", "--num-cpus=4", "--node-ip-address=127.0.0.1", f"--port={gcs}"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={self.folder / 'r'}"),
                f"--dashboard-agent-listen-port={agent}",
            ],
            env=self.environment,
            stdout=(self.folder / "head.log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self):
        deadline = time.monotonic() + 120
        while (answer := self.job("list")).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log() + answer.stderr
            time.sleep(1)

    def join(self):
        """Another node of the cluster, as of another machine, but that all lie on this one."""
        while not (address := re.search(r"--address='([^']+)'", self.log())):
            assert self.process.poll() is None, self.log()
            time.sleep(0.1)  # jobs are listed before it has said so
        agent = f"--dashboard-agent-listen-port={free_ports(1)[0]}"
        with (self.folder / "node.log").open("w") as log:
            node = subprocess.Popen(
                [RAY, "start", f"--address={address[1]}", "--block", "--num-cpus=4", agent],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        return node

    def kill(self, node):
        """End a node with all that runs on it, as when a machine is gone."""
        gone = [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]
        for process in gone:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait()
        self.nodes.remove(node)

    def actors(self):
        """What `ray list actors` says of those that live."""
        found = subprocess.run(
            [RAY, "list", "actors", "--address", self.address, "--filter", "state=ALIVE", "--format", "json"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        return json.loads(found.stdout or "[]")

    def job(self, *arguments, environment=None, timeout=400):
        return subprocess.run(
            [RAY, "job", arguments[0], "--address", self.address, *arguments[1:]],
            env=environment or self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def submit(self, *arguments, wait=True, name=None, **options):
        """`ray job submit --working-dir . -- python -m atlas_ray ARGUMENTS`."""
        more = ([] if wait else ["--no-wait"]) + (["--submission-id", name] if name else [])
        more += ["--runtime-env-json", json.dumps({"env_vars": {"OMP_NUM_THREADS": "1", **STOPPING}})]
        command = [sys.executable, "-m", "atlas_ray", *map(str, arguments)]
        return self.job("submit", "--working-dir", ".", *more, "--", *command, **options)

    def serve(self, command, *arguments):
        """What `serve COMMAND` prints."""
        done = subprocess.run(
            [SERVE, command, "--address", self.address, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr + self.log()
        return done.stdout

    def log(self):
        return (self.folder / "head.log").read_text()

    def close(self):
        for node in list(self.nodes):
            self.kill(node)
        os.killpg(self.process.pid, signal.SIGKILL)  # (asked to end, `ray start --block` takes half a minute)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
