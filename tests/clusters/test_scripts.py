"""The script that a user runs, with `ray` and `kubectl` that only note how they were called; a machine's secrets."""

import base64
import json
import os
import shlex
import subprocess
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from cluster_files import CLUSTERS, FLAGS, ROOT, filled, module

STUB = """#!{python}
import json, os, socket, sys, time
arguments = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([*arguments, os.environ.get("RAY_AUTH_MODE"), os.getcwd()]) + "\\n")
if arguments[1:2] in (["dashboard"], ["port-forward"]):
    if os.environ.get("TUNNEL") == "broken":
        sys.exit(1)
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    open(os.environ["CALLS"] + ".tunnel", "w").write(str(os.getpid()))
    time.sleep(600)
if arguments[1:3] == ["get", "secret"]:
    sys.exit(int(os.environ.get("NO_SECRET", 0)))
if arguments[1:3] == ["job", "submit"]:
    sys.exit(int(os.environ.get("JOB", 0)))
if arguments[1:2] == ["up"]:
    sys.exit(int(os.environ.get("UP", 0)))
"""


@pytest.fixture
def submit(tmp_path, unused_port):
    """Runs submit.sh; what it called, and how it ended."""
    (tmp_path / "bin").mkdir()
    for name in ("ray", "kubectl"):
        (tmp_path / "bin" / name).write_text(STUB.format(python=sys.executable))
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "token").write_text("0" * 64)

    def run(platform, *arguments, file=None, **settings):
        file = file or filled("raycluster" if platform == "kuberay" else platform, tmp_path)
        path = os.pathsep.join([str(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
        environment = {
            **os.environ,
            "PATH": path,
            "CALLS": str(tmp_path / "calls"),
            "PORT": str(unused_port),
            "FILE": str(file),
            "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
            **settings,
        }
        command = ["bash", str(CLUSTERS / "submit.sh"), platform, *arguments]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        calls = tmp_path / "calls"
        return ended, [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []

    return run


@pytest.fixture
def unused_port():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split()[2] == "Z"


def test_the_script_is_bash():
    assert subprocess.run(["bash", "-n", CLUSTERS / "submit.sh"]).returncode == 0
    assert os.access(CLUSTERS / "submit.sh", os.X_OK)


def test_a_recipe_is_submitted_to_a_launched_cluster(submit, tmp_path, unused_port):
    ended, calls = submit("aws", "llama-8b", "--workers", "4")
    assert ended.returncode == 0, ended.stderr
    file, address = str(tmp_path / "aws.yaml"), f"http://127.0.0.1:{unused_port}"
    assert [call[1:-2] for call in calls[:1]] == [["up", "--yes", file]]
    (tunnel,) = [call for call in calls if call[1] == "dashboard"]
    assert tunnel[1:-2] == ["dashboard", "--port", str(unused_port), file]
    (job,) = [call for call in calls if call[1] == "job"]
    assert job[:6] == ["ray", "job", "submit", "--address", address, "--submission-id"]
    assert job[6].startswith("llama-8b-") and job[6] in ended.stdout
    assert job[7:-2] == [
        *["--working-dir", ".", "--", "python", "-m", "atlas_ray", "run", "llama-8b"],
        *["--out", "/mnt/atlas-ray/runs/llama-8b", *FLAGS, "--workers", "4"],
    ]
    assert all(call[-2:] == ["token", str(ROOT)] for call in calls), "with the token, from the root of the project"
    assert f"ray down --yes {file}" in ended.stdout
    assert gone(int((tmp_path / "calls.tunnel").read_text()))


def test_a_recipe_is_submitted_to_a_cluster_on_kubernetes(submit, tmp_path, unused_port):
    base = filled("base", tmp_path)
    ended, calls = submit("kuberay", "demo", NO_SECRET="1", BASE=str(base))
    assert ended.returncode == 0, ended.stderr
    file, token = str(tmp_path / "raycluster.yaml"), tmp_path / "token"
    assert [call[1:-2] for call in calls if call[0] == "kubectl" and call[1] != "port-forward"] == [
        ["get", "secret", "atlas-ray-token"],
        ["create", "secret", "generic", "atlas-ray-token", f"--from-file=auth_token={token}"],
        ["apply", "-f", str(base)],
        ["apply", "-f", file],
        ["wait", "--for=condition=HeadPodReady", "raycluster/atlas-ray", "--timeout=30m"],
    ]
    (tunnel,) = [call for call in calls if call[1] == "port-forward"]
    assert tunnel[2:-2] == ["--address", "127.0.0.1", "service/atlas-ray-head-svc", f"{unused_port}:8265"]
    (job,) = [call for call in calls if call[0] == "ray"]
    assert job[1:3] == ["job", "submit"] and "demo" in job
    assert f"kubectl delete -f {file}" in ended.stdout


def test_arguments_arrive_as_they_were_given(submit, tmp_path):
    """Quotes, blanks and what a shell would expand: up to the shell on the head, to which Ray gives one line."""
    recipe, file = tmp_path / "my recipe.toml", "a 'b' \"c\" $HOME `id` \\ *"
    recipe.write_text('name = "x"\n[collect]\nfile = "x.jsonl"\n')
    ended, calls = submit("gcp", str(recipe), "--collect.file", file)
    assert ended.returncode == 0, ended.stderr
    (job,) = [call[:-2] for call in calls if call[1] == "job"]
    words = job[job.index("--") + 1 :]
    line = shlex.join(words).replace("python -m atlas_ray", "printf '%s\\n'")
    said = subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[:4] == ["run", str(recipe), "--out", "/mnt/atlas-ray/runs/my recipe"]
    assert said[-2:] == ["--collect.file", file]
    assert job[6].startswith("my-recipe-")


@pytest.mark.parametrize("platform", ["aws", pytest.param("kuberay", marks=pytest.mark.slow)])
def test_a_job_that_fails_gives_its_exit_code_and_says_what_still_costs(submit, tmp_path, platform):
    ended, calls = submit(platform, "demo", JOB="7", BASE=str(filled("base", tmp_path)))
    assert ended.returncode == 7
    assert not [call for call in calls if call[1:3] == ["create", "secret"]], "a token that is there is left alone"
    assert "the cluster is still up and costs money" in ended.stdout
    assert gone(int((tmp_path / "calls.tunnel").read_text()))


def test_a_cluster_that_does_not_come_up_is_the_end(submit):
    ended, calls = submit("gcp", "demo", UP="3")
    assert ended.returncode == 3
    assert [call[1] for call in calls] == ["up"]


def test_a_tunnel_that_breaks_is_told(submit):
    ended, calls = submit("onprem", "demo", TUNNEL="broken")
    assert ended.returncode == 2
    assert "the tunnel to the head broke; the cluster is up: ray down" in ended.stderr
    assert not [call for call in calls if call[1] == "job"]


def test_a_port_that_is_taken_is_not_somebody_elses_cluster(submit, unused_port):
    import socket

    with socket.create_server(("127.0.0.1", unused_port)):
        ended, calls = submit("aws", "demo")
    assert ended.returncode == 2 and "is taken here" in ended.stderr
    assert calls == []


def test_nothing_is_started_for_a_recipe_that_does_not_fit_or_a_file_that_is_not_filled_in(submit):
    ended, calls = submit("aws", "llama-8b", "--workers", "65")
    assert ended.returncode == 2 and "65 workers ask for" in ended.stderr
    ended, calls = submit("aws", "demo", file=CLUSTERS / "aws.yaml")
    assert ended.returncode == 2 and "CHANGE-ME" in ended.stderr
    ended, calls = submit("azure", "demo", file="x.yaml")
    assert ended.returncode == 2 and "no such platform: azure" in ended.stderr
    assert calls == []


# secrets

node = module("node")


def test_a_secret_comes_from_aws(monkeypatch, capsys):
    asked = []

    class Client:
        def get_secret_value(self, SecretId):
            asked.append(SecretId)
            return {"SecretString": '{"HF_TOKEN": "hf x"}'}

    boto3 = types.SimpleNamespace(client=lambda *service, **options: asked.append((service, options)) or Client())
    monkeypatch.setitem(sys.modules, "boto3", boto3)
    node.main(["secrets", "aws", "atlas-ray", "eu-west-1"])
    assert capsys.readouterr().out == "export HF_TOKEN='hf x'\n"
    assert asked == [(("secretsmanager",), {"region_name": "eu-west-1"}), "atlas-ray"]


def test_a_secret_comes_from_google(monkeypatch, capsys):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Metadata-Flavor"), self.headers.get("Authorization")))
            data = base64.b64encode(b'{"OPENAI_API_KEY": "sk"}').decode()
            answer = {"access_token": "ya29"} if "computeMetadata" in self.path else {"payload": {"data": data}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("GCE_METADATA_URL", "SECRET_MANAGER_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
    try:
        node.main(["secrets", "gcp", "atlas-ray", "my-project"])
    finally:
        server.shutdown()
    assert capsys.readouterr().out == "export OPENAI_API_KEY=sk\n"
    assert asked == [
        ("/computeMetadata/v1/instance/service-accounts/default/token", "Google", None),
        ("/v1/projects/my-project/secrets/atlas-ray/versions/latest:access", None, "Bearer ya29"),
    ]


def test_a_command_that_is_none_is_told_what_there_is():
    with pytest.raises(SystemExit, match="cluster-node secrets aws NAME REGION"):
        node.main(["secrets"])
