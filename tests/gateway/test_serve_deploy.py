"""`serve deploy clusters/gateway-serve.yaml` on a cluster that is up, as docs/gateway.md says."""

import threading
import time
from pathlib import Path

import pytest
import yaml
from gateway_parts import KEY, ask, chat, said
from ray_head import ROOT, Head, free_ports

from tests.gateway.test_faults import STATUSES, recipe_text

pytest.importorskip("mmh3", reason="Ray Serve: needs the extra 'gateway-ray'")
pytest.importorskip("aiohttp_cors", reason="needs the extra 'jobs'")
LAYERS = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "atlas_ray.gateway.proxy.layers",
    "OMP_NUM_THREADS": "1",
    "RAY_worker_niceness": "0",  # as tests/conftest.py
}
CONFIG = ROOT / "clusters" / "gateway-serve.yaml"


@pytest.fixture
def head():
    made = Head(**LAYERS, ATLAS_TEST_KEY=KEY)
    try:
        made.wait()
        yield made
    finally:
        made.close()


class Deployed:
    """The file that ships, of which only the recipe, the directory and the port are the test's."""

    def __init__(self, head, folder):
        self.head, self.folder, self.port, self.version = head, folder, free_ports(1)[0], 0

    def deploy(self, recipe):
        self.version += 1
        text = CONFIG.read_text()
        for theirs, ours in (
            ("/mnt/atlas-ray/CHANGE-ME.toml", str(recipe)),
            ("/mnt/atlas-ray/runs/gateway", str(self.folder / "state")),
            ("port: 8008", f"port: {self.port}"),
            ('version: "1"', f'version: "{self.version}"'),
        ):
            assert text.count(theirs) == 1, theirs
            text = text.replace(theirs, ours)
        (self.folder / "serve.yaml").write_text(text)
        self.head.serve("deploy", self.folder / "serve.yaml")

    def status(self):
        """The application's, once Serve has made up its mind."""
        for _ in range(150):
            found = yaml.safe_load(self.head.serve("status"))["applications"]["atlas-ray"]
            if found["status"] not in ("NOT_STARTED", "DEPLOYING"):
                return found
            time.sleep(1)

    def ask(self, *talk, **headers):
        return ask(self.port, chat(*talk), {name.replace("_", "-"): value for name, value in headers.items()})


def recipe(folder, name, url, calls):
    budget = {"calls": calls, "tokens": 100_000, "usd": 1}
    scale = {"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.1}
    (folder / name).write_text(recipe_text(url, switch="deepthink", budget=budget, autoscaling=scale))
    return folder / name


def left(headers):
    return headers["x-atlas-budget-left"].split()[0]


class Agents:
    """Agents that play until the block ends."""

    def __init__(self, deployed, number):
        self.over, self.wrong, self.asked, self._deployed = threading.Event(), [], 0, deployed
        self._threads = [threading.Thread(target=self._play, args=[n]) for n in range(number)]

    def _play(self, number):
        talk = [f"agent {number} goes"]
        while not self.over.is_set():
            status, _, text = self._deployed.ask(*talk, x_session_id=f"agent {number}")
            self.asked += 1
            if status == 200:
                talk = [*talk, said(text), f"seen {len(talk)}"]
            elif status not in STATUSES:
                self.wrong.append((status, text))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_the_config_that_ships_is_deployed_changed_and_ended(head, upstream, tmp_path):
    deployed = Deployed(head, tmp_path)
    deployed.deploy(recipe(tmp_path, "first.toml", upstream.url, calls=3))
    found = deployed.status()
    assert found["status"] == "RUNNING" and found["deployments"]["gateway"]["replica_states"] == {"RUNNING": 2}
    status, headers, text = deployed.ask("go", x_session_id="one")
    assert status == 200 and left(headers) == "calls=2" and Path(tmp_path / "state" / "gateway").is_dir()
    assert ask(deployed.port, b"x" * (17 * 2**20))[0] == 413, "the limits of our layers are there"
    assert deployed.ask("go", Host="evil.example")[0] == 400

    with Agents(deployed, 6) as agents:
        deployed.deploy(recipe(tmp_path, "first.toml", upstream.url, calls=5))
        assert deployed.status()["status"] == "RUNNING"
        for _ in range(100):
            if left(deployed.ask("new", x_session_id=f"new {time.monotonic()}")[1]) == "calls=4":
                break
            time.sleep(0.2)
        else:
            raise AssertionError("the changed recipe is not read")
    assert not agents.wrong and agents.asked > 20
    for number in range(6):
        assert upstream.spent(f"agent {number} ", "large")[0] <= 5
    _, headers, _ = deployed.ask("go", said(text), "on", x_session_id="one")
    assert headers["x-atlas-step"] == "1" and left(headers) == "calls=1", "a session keeps its own budget"

    bad = recipe(tmp_path, "bad.toml", upstream.url, calls=3)
    bad.write_text(bad.read_text().replace("switch =", "swich ="))
    deployed.deploy(bad)
    found = deployed.status()
    assert found["status"] == "DEPLOY_FAILED" and "bad.toml:3: gateway.swich: unknown key" in found["message"]
    assert deployed.ask("go", said(text), "on", x_session_id="one")[1]["x-atlas-repeated"] == "true", (
        "the old one stays"
    )

    head.serve("shutdown", "-y")
    for _ in range(300):
        try:
            ask(deployed.port, None, path="/healthz", method="GET")
        except OSError:
            return
        time.sleep(0.1)
    raise AssertionError("it still answers")
