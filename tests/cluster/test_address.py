"""A Ray that is not there, or cannot put its files where it would: one line within seconds, before anything is done."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atlas_ray.cli import main
from atlas_ray.cluster import address as cluster
from atlas_ray.errors import InputError

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])


@contextmanager
def listener(answer):
    """Something that listens and says this to whoever connects; nothing: it is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            while True:
                try:
                    line, _ = server.accept()
                except OSError:
                    return
                line.settimeout(5)
                if answer:
                    line.recv(64)
                    line.sendall(answer)
                else:
                    kept.append(line)

        kept = []
        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def closed():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("http://127.0.0.1:8265", ["is that of a dashboard", "HOST:6379"]),
        ("https://head.example", ["is that of a dashboard"]),
        ("ray://127.0.0.1:10001", ["is that of a Ray client", "submit the command as a job"]),
        ("redis://127.0.0.1:6379", ["begins with redis://", "HOST:6379"]),
        ("127.0.0.1", ["is no address", "HOST:6379"]),
        ("no such host.invalid:6379", ["nothing answers there", "unset RAY_ADDRESS"]),
        ("127.0.0.1:99999999", ["nothing answers there"]),
    ],
)
def test_an_address_that_no_run_can_go_to(given, parts):
    said = cluster.trouble(given)
    for part in parts:
        assert part in said, said


def test_a_head_answers_and_others_are_told_from_it(monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER", 0.5)
    with listener(SETTINGS) as given:
        assert cluster.trouble(given) == ""
    with listener(b"HTTP/1.1 400 Bad Request\r\n\r\n") as given:
        assert "no Ray head" in cluster.trouble(given)
    with listener(b"") as given:
        assert "it is silent" in cluster.trouble(given)
        monkeypatch.setenv("RAY_USE_TLS", "1")
        assert cluster.trouble(given) == "", "with certificates its first words say nothing"
    assert "Connection refused" in cluster.trouble(closed())


class Web(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_web_server_is_no_head():
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert "no Ray head" in cluster.trouble(f"127.0.0.1:{server.server_address[1]}")
        server.shutdown()


@pytest.mark.parametrize(("given", "found"), [("", None), ("local", None), (" ", None), ("h:1", "h:1")])
def test_no_address_means_this_machine(monkeypatch, given, found):
    monkeypatch.setenv("RAY_ADDRESS", given)
    assert cluster.address() == found
    if not found:
        cluster.check_address()


RECIPE = 'name = "r"\n[collect]\nlevels = { GoToLocal = 1 }\n'


@pytest.mark.parametrize("address", ["dead", "http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_a_run_says_it_before_it_writes_anything(tmp_path, monkeypatch, capsys, address):
    (tmp_path / "r.toml").write_text(RECIPE)
    given = closed() if address == "dead" else address
    monkeypatch.setenv("RAY_ADDRESS", given)
    begun = time.monotonic()
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")]) == 2
    assert time.monotonic() - begun < 5
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"atlas-ray: RAY_ADDRESS: {given}")
    assert not (tmp_path / "run").exists()
    # nothing of it needs a Ray when it plays in its own process
    assert main(["run", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run"), "--workers", "0"]) == 0


def test_a_folder_that_is_too_long_for_sockets(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(long))
    assert "too long for Ray's sockets" in cluster.folder_trouble(cluster.usual_folder())
    found = cluster.other_folder()
    assert found is not None and cluster.folder_trouble(found) == ""
    assert found.stat().st_uid == os.getuid()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert cluster.other_folder() is None, "Ray takes its own variable first"


def test_a_folder_of_another_user(monkeypatch, tmp_path):
    place = Path("/tmp/atlas-ray-test-place")
    place.mkdir(exist_ok=True)
    (place / "ray").mkdir(exist_ok=True)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != place / "ray")
    try:
        monkeypatch.setenv("RAY_TMPDIR", str(place))
        assert f"{place / 'ray'} belongs to the user " in cluster.folder_trouble(place)
        assert cluster.other_folder() not in (None, place)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(InputError, match=r"^RAY_TMPDIR: .* set RAY_TMPDIR to a short folder of your own"):
            cluster.other_folder()
    finally:
        (place / "ray").rmdir()
        place.rmdir()
    assert "there is no directory" in cluster.folder_trouble(place)


@pytest.mark.slow
def test_ray_starts_although_its_usual_folder_is_too_long(tmp_path):
    long = tmp_path / ("x" * 90)
    long.mkdir()
    code = "import ray; from atlas_ray.cluster.workers import ensure_ray; ensure_ray(1); "
    code += "print(ray.cluster_resources()['CPU'])"
    environment = {**os.environ, "TMPDIR": str(long), "RAY_AUTH_MODE": "disabled"}
    environment.pop("RAY_TMPDIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "too long for Ray's sockets, by " in done.stdout and "Ray's files go to /tmp/ray-" in done.stdout
