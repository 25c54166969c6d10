"""Serving a switch: the same episodes as in play, budgets, faults, and what is refused over HTTP."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from switch_models import LEVELS, SHAPES, agents, model, specs

import envs
from atlas_ray.cli import main
from atlas_ray.errors import InputError
from atlas_ray.files import read_json, write_json
from atlas_ray.recipe import Recipe
from atlas_ray.serving import Answer, Asked, Desk, Refused, desk, open_desk
from atlas_ray.serving.app import HOST, listen, make_app
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.evaluate import play_switching
from atlas_ray.switching.features import EXTRA
from atlas_ray.switching.network import SwitchNetwork
from atlas_ray.switching.policy import SwitchConfig
from atlas_ray.tiny import build_tokenizer

STEPS = 7


def switch(budget=None, signals=("margin", "catch-up"), width=32):
    """A switch that nobody trained, which calls now and then."""
    torch.manual_seed(5)
    network = SwitchNetwork(width + len(signals) + EXTRA, (8,), 2, budget is not None)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return SwitchPolicy(SwitchConfig(width + len(signals), (8,), budget=budget, signals=signals), tensors)


def served(policy, budget=None, places=4, **more):
    return Desk("it", policy, agents(places), tuple(SHAPES), budget, **more)


class Client:
    """An episode of BabyAI that asks what to do."""

    def __init__(self, seed):
        chosen = specs(STEPS)
        spec = chosen[seed % len(chosen)]
        self.env = envs.make(spec.name, **spec.options)
        self.observation, info = self.env.reset(seed=seed)
        self.goal, self.over, self.success = info["goal"], False, False
        self.actions, self.called_at, self.asked = [], [], 0

    @property
    def now(self):
        return Asked(self.observation, self.env.admissible())

    def take(self, action, called):
        if called:
            self.called_at.append(len(self.actions))
        self.actions.append(action)
        self.observation, _, terminated, truncated, info = self.env.step(action)
        self.over, self.success = terminated or truncated, info["success"]


def play_at(desk, seeds):
    """All episodes at the desk, as many at a time as there are places, each a step further in every round."""
    waiting, playing, done = list(seeds)[::-1], {}, {}
    while waiting or playing:
        while waiting and len(playing) < desk.rows:
            client = Client(seed := waiting.pop())
            playing[desk.open(client.goal, STEPS)] = (seed, client)
        answers = desk.act({key: client.now for key, (_, client) in playing.items()})
        for key, (seed, client) in list(playing.items()):
            client.take(answers[key].action, answers[key].called)
            if client.over:
                done[seed] = (client, desk.about(key))
                desk.close(key)
                del playing[key]
    return done


@pytest.mark.parametrize("budget", [None, 2])
def test_episodes_go_as_they_do_in_play(budget):
    policy, seeds = switch(budget), range(11)
    expected = play_switching(policy, agents(4), specs(STEPS), seeds, budget, record=True)
    done = play_at(served(policy, budget), seeds)
    assert any(row["calls"] for row in expected) and any(row["calls"] < row["steps"] for row in expected)
    for row in expected:
        client, about = done[row["seed"]]
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert (client.called_at, client.success) == (row["called_at"], row["success"])
        assert [used["tokens"] for used in about["usage"]] == row["tokens"]
        assert (about["calls"], about["steps"]) == (row["calls"], row["steps"] - 1), "the last step led nowhere we know"


def test_a_budget_is_never_exceeded_and_what_is_left_is_told():
    desk = served(Always(1), budget=2)
    client = Client(0)
    key = desk.open(client.goal, STEPS)
    seen = []
    for _ in range(4):
        answer = desk.act({key: client.now})[key]
        seen.append((answer.model, answer.called, answer.calls, answer.calls_left, answer.step))
        client.observation = f"step {answer.step}"
    assert seen == [
        ("deepthink", True, 1, 1, 0),
        ("deepthink", True, 2, 0, 1),
        ("quick", False, 2, 0, 2),
        ("quick", False, 2, 0, 3),
    ]


def refused(answer):
    assert isinstance(answer, Refused), answer
    return answer.status, str(answer)


def test_what_cannot_be_answered_is_refused_and_others_are_answered():
    desk = served(Always(0))
    fine, short, strange = (desk.open("go to the red ball", limit) for limit in (9, 1, 9))
    now = Asked("you see a red ball", ["go forward", "turn left"])
    found = desk.act({fine: now, strange: Asked("nothing", ()), "who": now, short: now})
    assert isinstance(found[fine], Answer) and found[fine].action in now.actions
    assert refused(found[strange])[0] == 422
    assert refused(found["who"])[0] == 404
    assert isinstance(found[short], Answer)
    assert refused(desk.act({short: now})[short]) == (409, "the episode has had its 1 steps")
    assert refused(desk.act({short: now})[short])[0] == 409
    assert desk.about(short)["over"] == "the episode has had its 1 steps"
    long = Asked("word " * 3000, ["go forward"])
    assert "do not fit" in refused(desk.act({strange: long})[strange])[1]
    assert "longer than the context" in refused(desk.act({fine: long})[fine])[1]


def test_places_run_out_and_are_taken_from_the_idle():
    time = [0.0]
    desk_of_two = served(Always(0), places=2, clock=lambda: time[0])
    now = Asked("x", ["go forward"])
    first, second = desk_of_two.open("a", 5), desk_of_two.open("b", 5)
    with pytest.raises(Refused, match="all 2 places are taken"):
        desk_of_two.open("c", 5)
    time[0] = desk.IDLE - 1
    assert isinstance(desk_of_two.act({second: now})[second], Answer)
    time[0] = desk.IDLE + 1
    third = desk_of_two.open("c", 5)
    assert refused(desk_of_two.act({first: now})[first])[0] == 404
    assert desk_of_two.act({third: now, second: now})[third].step == 0
    desk_of_two.close(third)
    with pytest.raises(Refused, match="no episode of this id"):
        desk_of_two.about(third)


def test_a_call_that_failed_is_paid_for_once_and_answered_by_the_same_model():
    desk = served(Always(1), budget=1)
    deepthink, client = desk._game.agents[1], Client(0)
    key, act = desk.open(client.goal, STEPS), deepthink.act

    def fails(*arguments):
        deepthink.act = act
        raise RuntimeError("the server\nis gone")

    deepthink.act = fails
    assert refused(desk.act({key: client.now})[key]) == (503, "no answer: the server is gone; ask again")
    other = desk.act({key: Asked("something else", ["go forward"])})[key]
    assert refused(other)[0] == 409
    answer = desk.act({key: client.now})[key]
    assert (answer.model, answer.calls, answer.calls_left, answer.step) == ("deepthink", 1, 0, 0)


# --- over HTTP ---


@pytest.fixture
def server():
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    running = []

    def start(desk):
        sock = listen(0)
        config = uvicorn.Config(make_app(desk), log_level="warning", lifespan="off")
        made = uvicorn.Server(config)
        made.install_signal_handlers = lambda: None
        thread = threading.Thread(target=made.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        running.append((made, thread, sock))
        return sock.getsockname()[1]

    yield start
    for made, thread, sock in running:
        made.should_exit = True
        thread.join(20)
        sock.close()


def ask(port, method, path, body=None, headers=()):
    line = http.client.HTTPConnection(HOST, port, timeout=60)
    try:
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        line.request(method, path, data, {"Content-Type": "application/json", **dict(headers)})
        answer = line.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text[:1] in (b"{", b"[") else text.decode()
    finally:
        line.close()


def play_over(port, seed):
    client = Client(seed)
    status, begun = ask(port, "POST", "/episodes", {"instruction": client.goal, "max_steps": STEPS})
    assert status == 201, begun
    while not client.over:
        now = client.now
        body = {"observation": now.observation, "actions": list(now.actions)}
        status, told = ask(port, "POST", f"/episodes/{begun['id']}/act", body)
        assert status == 200, told
        client.take(told["action"], told["called"])
    assert ask(port, "GET", f"/episodes/{begun['id']}")[1]["calls"] == len(client.called_at)
    assert ask(port, "DELETE", f"/episodes/{begun['id']}") == (204, "")
    return client


def test_many_clients_at_once_get_what_they_would_get_alone(server):
    policy, seeds = switch(2), range(12)
    expected = play_switching(policy, agents(4), specs(STEPS), seeds, 2, record=True)
    port = server(served(policy, 2, places=6))
    with ThreadPoolExecutor(6) as threads:
        clients = list(threads.map(lambda seed: play_over(port, seed), seeds))
    for client, row in zip(clients, expected, strict=True):
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert client.called_at == row["called_at"]
    assert ask(port, "GET", "/")[1] == {"policy": "it", "models": list(SHAPES), "budget": 2, "places": 6}


def test_what_http_refuses(server):
    port = server(served(Always(0), places=1))
    assert ask(port, "GET", "/episodes/none")[0] == 404
    assert ask(port, "POST", "/episodes", {"instruction": 3})[0] == 422
    assert ask(port, "POST", "/episodes", {"instruction": "x", "max_steps": 0})[0] == 422
    assert ask(port, "POST", "/episodes", {"instruction": "x", "budget": 9})[0] == 422, "an unknown key"
    assert ask(port, "POST", "/episodes", b"{")[0] == 422
    plain = {"Content-Type": "text/plain"}
    body = json.dumps({"instruction": "x"}).encode()
    assert ask(port, "POST", "/episodes", body, plain)[0] == 422, "what a page in a browser may send unasked"
    assert ask(port, "GET", "/", headers={"Host": "evil.example"})[0] == 400, "a page that leads its own name here"
    status, begun = ask(port, "POST", "/episodes", {"instruction": "x"})
    assert (status, begun["max_steps"], begun["calls_left"]) == (201, 100, None)
    assert ask(port, "POST", "/episodes", {"instruction": "x"}) == (
        503,
        {"detail": "all 1 places are taken: end an episode, or serve with more --places"},
    )
    assert ask(port, "POST", f"/episodes/{begun['id']}/act", {"observation": "x"})[0] == 422


# --- runs ---


@pytest.fixture
def run(tmp_path):
    """A run with two switches and a tuned model, as the stages leave them."""
    folders = {}
    for name in SHAPES:
        folders[name] = tmp_path / name
        model(name).save_pretrained(folders[name])
        build_tokenizer().save_pretrained(folders[name])
    recipe = Recipe.model_validate(
        {
            "name": "r",
            "num_envs": 3,
            "style": "action",
            "switch": {
                "models": [str(f) for f in folders.values()],
                "levels": LEVELS,
                "num_envs": 5,
                "budgets": [1, 2],
            },
        }
    )
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "recipe.resolved.json", recipe.model_dump(mode="json"))
    for budget in (1, 2):
        switch(budget, signals=()).save(run / "checkpoints" / f"switch-budget{budget}-seed0")
    tuned = run / "checkpoints" / "all-s0"
    model("quick").save_pretrained(tuned)
    build_tokenizer().save_pretrained(tuned)
    write_json(tuned / "run.json", {})
    (run / "checkpoints" / "half-s0").mkdir()
    write_json(run / "checkpoints" / "half-s0" / "config.json", {})
    return run


def test_switches_tuned_models_and_the_switchs_own_models_can_be_served(run):
    now = Asked("you see a red ball 1 step forward", ["go forward", "turn left"])
    shapes = {}
    for name in ("switch-budget2-seed0", "all-s0", "always-quick", "always-deepthink"):
        with open_desk(run, name) as desk:
            key = desk.open("go to the red ball", 5)
            answer = desk.act({key: now})[key]
            assert answer.action in now.actions
            shapes[name] = (desk.budget, desk.rows, len(desk.models), os.path.basename(answer.model))
    assert shapes["switch-budget2-seed0"][:3] == (2, 5, 2)
    assert shapes["all-s0"] == (None, 3, 1, "all-s0")
    assert shapes["always-quick"] == (None, 5, 1, "quick")
    assert shapes["always-deepthink"] == (None, 5, 1, "deepthink")
    with open_desk(run, "all-s0", places=2) as desk:
        assert desk.rows == 2


def test_which_policy_has_to_be_said_where_there_are_several(run, tmp_path):
    known = "all-s0, switch-budget1-seed0, switch-budget2-seed0, always-quick, always-deepthink"
    with pytest.raises(InputError, match=f"say which policy: {known}"), open_desk(run):
        pass
    with pytest.raises(InputError, match="has no policy 'half-s0'; it has all-s0"), open_desk(run, "half-s0"):
        pass
    with pytest.raises(InputError, match="is not a run directory"), open_desk(tmp_path):
        pass
    recipe = read_json(run / "recipe.resolved.json")
    write_json(run / "recipe.resolved.json", {**recipe, "novelty": 1})
    with pytest.raises(InputError, match="recipe.resolved.json: novelty: .* other fields"), open_desk(run, "all-s0"):
        pass
    recipe["switch"]["models"][1] = {"model": "expert"}
    write_json(run / "recipe.resolved.json", recipe)
    with pytest.raises(InputError, match="the environment's expert"), open_desk(run, "switch-budget1-seed0"):
        pass


def test_bad_arguments_are_refused_before_a_model_is_loaded(run, capsys):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    with listen(0) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(run), "all-s0", "--port", port]) == 2
    assert f"--port: {port}: " in capsys.readouterr().err
    assert main(["serve", str(run), "all-s0", "--places", "0"]) == 2
    assert main(["serve", str(run), "all-s0", "--port", "70000"]) == 2
    assert main(["serve", str(run)]) == 2
    assert "say which policy" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_serves_until_a_signal_ends_it(run, end, code):
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    command = [sys.executable, "-m", "atlas_ray", "serve", str(run), "switch-budget1-seed0", "--port", "0"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell lets background processes ignore it, and so may whoever runs the tests
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        said = process.stdout.readline()
        found = re.search(
            r"serving switch-budget1-seed0 .*, at most 1 calls an episode\) on http://127.0.0.1:(\d+)", said
        )
        assert found, said + process.stderr.read()
        client = play_over(int(found[1]), 3)
        assert len(client.called_at) <= 1
        process.send_signal(end)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, out + err
    assert "Traceback" not in err


def test_a_switch_is_served_as_it_was_saved(run):
    policy = SwitchPolicy.load(run / "checkpoints" / "switch-budget2-seed0")
    features = np.random.default_rng(0).normal(size=(5, policy.config.features + EXTRA)).astype(np.float32)
    with open_desk(run, "switch-budget2-seed0") as desk:
        assert np.array_equal(desk.policy.numbers(features), policy.numbers(features))
