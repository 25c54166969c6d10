"""The switch stage against servers that fail: it stops with the reason, scores nothing that was lost, and goes on."""

import itertools
import json

import numpy as np
import pytest
from chat_server import DOWN, GOOD, answer, good_server
from switch_models import model

from atlas_ray.cli import main
from atlas_ray.data.results import load_results
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.pipeline import open_run
from atlas_ray.recipe.loading import load
from atlas_ray.switching.policy import SwitchConfig, SwitchPolicy

RECIPE = """\
name = "small"
workers = 0
style = "react"
[agent]
thought_tokens = 4
[switch]
unit = "seconds"
levels = ["GoToLocalS5N2"]
max_steps = 4
costs = [0.05]
steps = 64
num_envs = 4
features = 8
evaluate_every = 32
evaluate_episodes = 4
test_episodes = 16
rates = [0.5]
[[switch.models]]
model = "{quick}"
[[switch.models]]
model = "gpt-5"
base_url = "{url}"
max_tokens = 200
retries = 0
"""
server = pytest.fixture(good_server, name="server")


@pytest.fixture
def run(server, tmp_path, capsys):
    """A run whose switch is trained already, so that no Ray is needed; ``train`` makes it train first."""
    model("quick").save_pretrained(tmp_path / "quick")
    build_tokenizer().save_pretrained(tmp_path / "quick")
    recipe, directory = tmp_path / "small.toml", tmp_path / "run"
    recipe.write_text(RECIPE.format(quick=tmp_path / "quick", url=server.url))

    capsys.readouterr()

    def switch(train=False, **more):
        given = {name.replace("__", "."): str(value) for name, value in more.items()}
        if not directory.exists() and not train:
            open_run(load(recipe, given), directory)
            trained().save(directory / "checkpoints" / "switch-cost0.05-seed0")
        flags = [part for name, value in given.items() for part in (f"--{name}", value)]
        code = main(["run", str(recipe), "--out", str(directory), *flags])
        return code, capsys.readouterr().err.strip()

    return switch, directory


def trained():
    """A switch of random weights, which calls now and then."""
    rng, widths = np.random.default_rng(0), [10, 4, 2]
    tensors = {}
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        tensors[f"layers.{2 * i}.weight"] = rng.normal(size=(after, before)).astype(np.float32)
        tensors[f"layers.{2 * i}.bias"] = np.zeros(after, np.float32)
    return SwitchPolicy(SwitchConfig(8, (4,), cost=0.05), tensors)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(directory):
    return [row for row in lines(directory / "events.jsonl") if row["event"] == "replies"]


def test_nothing_but_502_stops_with_the_reason_and_a_second_start_goes_on(run, server):
    switch, directory = run
    server.faults = [DOWN] * 5000
    code, said = switch()
    assert code == 1
    assert len(said.splitlines()) == 1, said
    assert "always-deepthink, gpt-5: 10 of 10 answers are none" in said
    assert "HTTP 502: down" in said
    assert "max_lost_answers allows 20%" in said
    assert told(directory)[-1]["lost"] >= 10
    assert not (directory / "switch" / "policies.json").exists()
    assert not (directory / "results.json").exists()
    rows = lines(directory / "switch" / "episodes.jsonl")
    assert not any(row["success"] for row in rows if row["lost"])

    server.faults = []
    assert switch() == (0, "")
    policies = load_results(directory / "results.json").londi.policies
    assert all(policy.episodes == 16 and not policy.lost_episodes for policy in policies)
    deep = policies[1]
    last = {r["seed"]: r for r in lines(directory / "switch" / "episodes.jsonl") if r["policy"] == deep.name}
    assert deep.replies == {"ok": sum(row["steps"] for row in last.values())}
    assert policies[0].replies is None
    assert "lost" not in told(directory)[-1]
    assert told(directory)[-1]["ok"] == sum((p.replies or {}).get("ok", 0) for p in policies)


def test_one_answer_in_ten_that_is_none_is_left_out_for_all_and_counted(run, server):
    switch, directory = run
    asked = itertools.count(1)
    server.script = lambda body: answer("<think>hm", "length") if next(asked) % 10 == 0 else answer(GOOD)
    assert switch(switch__cache="false", switch__test_episodes=40) == (0, "")
    rows = lines(directory / "switch" / "episodes.jsonl")
    lost = {r["seed"] for r in rows if r["lost"]}
    policies = load_results(directory / "results.json").londi.policies
    for policy in policies:
        own = [r for r in rows if r["policy"] == policy.name]
        kept = [r for r in own if r["seed"] not in lost]
        assert policy.episodes == len(kept) == 40 - len(lost) > 0
        assert policy.success == sum(r["success"] for r in kept) / len(kept)
        assert policy.mean_return == pytest.approx(sum(r["return"] for r in kept) / len(kept))
        assert policy.lost_episodes == sum(r["lost"] for r in own)
        assert (policy.replies or {}).get("lost", 0) == policy.lost_episodes
    assert told(directory)[-1]["lost"] == sum(r["lost"] for r in rows)
    assert len(server.requests) // 10 - sum(r["lost"] for r in rows) in (0, 1), "the replay of an episode is no row"
    assert all("switch.models.1.max_tokens" in r["error"] for r in rows if r["lost"])
    page = (directory / "report.html").read_text()
    assert "lost episodes" in page
    assert "asked again" not in page, "an empty answer at its limit is not"


def test_thinking_that_uses_up_the_tokens_names_the_field_and_more_may_be_allowed(run, server):
    switch, _ = run
    server.script = lambda body: answer("<think>hm", "length") if len(body["messages"]) > 2 else answer(GOOD)
    code, said = switch()
    assert code == 1
    assert "switch.models.1.max_tokens = 200" in said
    assert all("Your answer" not in body["messages"][-1]["content"] for _, body, _ in server.requests), (
        "asked once each"
    )
    code, said = switch(max_lost_answers=1)
    assert code == 1
    assert "no episode is left to score" in said and "max_tokens" in said


# the exception of an environment runner is also raised in tests/switching/test_faults.py
@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_whose_model_is_down_stops_and_goes_on(ray_session, run, server, runners):
    switch, directory = run
    server.faults = [DOWN] * 5000
    code, said = switch(train=True, switch__env_runners=runners)
    assert code == 1
    assert "londi(c=0.05), gpt-5: " in said and "answers are none" in said and "HTTP 502: down" in said
    assert len(said.splitlines()) == 1, said
    assert told(directory)[-1]["lost"] >= 3
    server.faults = []
    assert switch(train=True, switch__env_runners=runners) == (0, "")
    taught = [r["replies"] for r in lines(directory / "metrics.jsonl") if "replies" in r]
    assert taught[-1]["ok"] > taught[0]["ok"] > 0
    policies = load_results(directory / "results.json").londi.policies
    assert told(directory)[-1]["ok"] == taught[-1]["ok"] + sum((p.replies or {}).get("ok", 0) for p in policies)
