"""A run's switch behind the gateway, over local models and over servers, decides as in the switch stage."""

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import fake_vllm
import pytest
from gateway_parts import HOST, ask, chat, gateway, recipe, said
from serving_sessions import Client, switch
from switch_models import LEVELS, SHAPES, both, model, specs

from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.vllm import VllmEngine
from atlas_ray.errors import InputError
from atlas_ray.gateway.deciding import Decider
from atlas_ray.gateway.opening import check_gateway, recipe_of_gateway
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import write_json
from atlas_ray.switching.evaluate import evaluate_policy
from atlas_ray.switching.policy import Situation, SwitchPolicy

STEPS, TOKENS = 7, 2000
EXAMPLE = Path(__file__).parents[2] / "examples" / "gateway_agent.py"


def switch_that_calls():
    """One that nobody trained, with a budget of two calls, which calls in some states."""
    texts = [Situation(f"go to the red ball\nyou see a {c} ball {n} steps forward", 2, 0.1, "", 0) for c in
             ("red", "grey") for n in range(9)]  # fmt: skip
    made = (both(32, (8,), 2, 2, seed)[1] for seed in range(100))
    return next(policy for policy in made if 6 < sum(policy.decide(texts)) < 12)


@pytest.fixture(scope="module", params=["action", "react"])
def run(request, tmp_path_factory):
    """A run with switches, as the stages leave it."""
    folder = tmp_path_factory.mktemp("run")
    for name in SHAPES:
        model(name).save_pretrained(folder / name)
        build_tokenizer().save_pretrained(folder / name)
    table = {"models": [str(folder / n) for n in SHAPES], "levels": LEVELS, "max_steps": STEPS, "budgets": [2]}
    made = Recipe.model_validate({"name": "r", "num_envs": 3, "style": request.param, "switch": table})
    write_json(folder / "recipe.resolved.json", made.model_dump(mode="json"))
    switch_that_calls().save(folder / "checkpoints" / "switch-budget2-seed0")
    switch(2).save(folder / "checkpoints" / "switch-cost0.05-seed0")
    calls = switch_that_calls()
    config = replace(calls.config, budget=TOKENS, unit="tokens")
    SwitchPolicy(config, calls.tensors).save(folder / "checkpoints" / f"switch-tokens{TOKENS}-seed0")
    return folder


class Player(Client):
    """An episode in which the agent speaks OpenAI's chat API."""

    def __init__(self, seed):
        super().__init__(seed)
        self.session, self.messages = f"episode {seed}", [{"role": "user", "content": self.goal}]

    def step(self, port):
        self.messages.append({"role": "user", "content": self.observation})
        choice = {"choice": self.env.admissible()}
        body = {"model": "londi", "messages": self.messages, "structured_outputs": choice}
        status, headers, text = ask(port, body, {"x-atlas-session": self.session})
        assert status == 200, text
        self.messages.append({"role": "assistant", "content": said(text)})
        self.take(said(text).rpartition("Action:\n")[2], headers["x-atlas-model"].endswith("deepthink"))


def play(port, seed):
    player = Player(seed)
    while not player.over:
        player.step(port)
    return player


def test_an_agent_gets_the_actions_and_calls_of_the_switch_stages_own_play(run, tmp_path):
    recipe_of_it = recipe_of_gateway(run, "switch-budget2-seed0")
    own = [Agent(TransformersEngine(model(name), 4, build_tokenizer()), recipe_of_it.style) for name in SHAPES]
    expected = evaluate_policy(switch_that_calls(), own, specs(STEPS), range(6), 2, record=True)
    with gateway(recipe_of_it, tmp_path) as (port, answering):
        assert answering.admission.limits.calls == 2, "the budget that the switch was trained with"
        clients = [play(port, seed) for seed in range(6)]
    for client, row in zip(clients, expected, strict=True):
        assert client.actions == [step["action"] for step in row["episode"]["steps"]]
        assert client.called_at == row["called_at"]
    assert any(client.called_at for client in clients)


def test_a_budget_of_tokens_is_guarded_in_tokens_as_in_training(run, tmp_path):
    made, spent, who = recipe_of_gateway(run, f"switch-tokens{TOKENS}-seed0"), 0, []
    with gateway(made, tmp_path) as (port, answering):
        assert answering.admission.limits == (None, TOKENS, None), "what the switch was trained with"
        client, status = Client(1), 200
        messages = [{"role": "user", "content": client.goal}]
        while status == 200 and len(who) < 30:
            messages.append({"role": "user", "content": client.observation})
            body = {
                "model": "londi",
                "messages": messages,
                "structured_outputs": {"choice": ["go forward", "turn left"]},
            }
            status, headers, text = ask(port, body, {"x-atlas-session": "one"})
            if status == 200:
                spent += json.loads(text)["usage"]["total_tokens"]
                assert headers["x-atlas-budget-left"] == f"tokens={TOKENS - spent}"
                who.append(headers["x-atlas-model"])
                messages.append({"role": "assistant", "content": json.loads(text)["choices"][0]["message"]["content"]})
    assert status == 402 and TOKENS / 4 < spent <= TOKENS
    assert who[-1].endswith("quick"), "once no call fits, QUICK acts as long as it does"


def test_the_example_plays_as_the_switch_stage_does(run, tmp_path, monkeypatch, capsys):
    made = recipe_of_gateway(run, "switch-budget2-seed0")
    own = [Agent(TransformersEngine(model(name), 4, build_tokenizer()), made.style) for name in SHAPES]
    (row,) = evaluate_policy(switch_that_calls(), own, specs(STEPS), [2], 2, record=True)
    with gateway(made, tmp_path) as (port, _):
        options = ["--url", f"http://{HOST}:{port}/v1", "--env", f"atlas_ray.envs:BabyAIText/{LEVELS[0]}-v0"]
        monkeypatch.setattr(sys, "argv", ["gateway_agent.py", *options, "--seed", "2", "--max-steps", str(STEPS)])
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    told = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [action for _, _, action in told] == [step["action"] for step in row["episode"]["steps"]]
    assert [n for n, (_, who, _) in enumerate(told) if who.endswith("deepthink")] == row["called_at"]


def test_a_local_model_writes_its_thought_before_its_action(run, tmp_path):
    made = recipe_of_gateway(run, "always-quick")
    with gateway(made, tmp_path) as (port, _):
        body = chat("go to the red ball", structured_outputs={"choice": ["go forward", "turn left"]}, stream=False)
        text = ask(port, body)[2]
        made_up = json.loads(text)["choices"][0]["message"]["content"]
        assert made_up.startswith("Thought:\n") == (made.style == "react")
        assert made_up.rpartition("Action:\n")[2] in body["structured_outputs"]["choice"]
        events = ask(port, {**body, "stream": True, "stream_options": {"include_usage": True}})[2]
        assert events.endswith(b"data: [DONE]\n\n") and b'"prompt_tokens"' in events
        for more in ({}, {"tools": [{}]}, {"n": 2}, {"structured_outputs": {"choice": ["a", 3]}}):
            status, _, why = ask(port, chat("go", **more))
            assert status == 400, why


def test_a_model_in_vllm_acts_as_in_our_own_engine(run, upstream, tmp_path, monkeypatch):
    """With a stand-in for vLLM's package, which has the real model behind it."""
    made = recipe_of_gateway(run, "always-quick")
    models = [made.gateway.models[0], recipe(upstream.url).gateway.models[1]]
    made = made.model_copy(update={"gateway": made.gateway.model_copy(update={"models": models})})
    with gateway(made, tmp_path / "own") as (port, _):
        expected = [play(port, seed).actions for seed in range(2)]
    fake_vllm.install(monkeypatch, on_cpu=False)
    there = made.model_copy(update={"engine": made.engine.model_copy(update={"kind": "vllm"})})
    with gateway(there, tmp_path / "vllm") as (port, answering):
        assert [play(port, seed).actions for seed in range(2)] == expected
        assert isinstance(answering.upstreams[0]._player._engine, VllmEngine)
    both = recipe_of_gateway(run, "always-quick").model_copy(update={"engine": there.engine})
    with pytest.raises(InputError, match="--ray") as error, gateway(both, tmp_path / "two"):
        pass
    assert error.value.field == "engine.kind"


def test_over_servers_the_switch_reads_goal_and_what_came_since(run, upstream, tmp_path):
    made = recipe(upstream.url, switch=f"{run}/switch-budget2-seed0", max_steps=10)
    policy, asked = switch_that_calls(), []
    with gateway(made, tmp_path) as (port, _):
        talk, left = ["reach the door"], 2
        for step in range(8):
            _, headers, text = ask(port, chat(*talk))
            expected = policy.decide([Situation(f"reach the door\n{talk[-1]}", left, step / 10, "", step)])[0]
            if headers["x-atlas-model"] == "large":
                left -= 1
            asked.append((headers["x-atlas-model"] == "large") == bool(expected))
            talk += [json.loads(text)["choices"][0]["message"]["content"], f"wall {step} ahead"]
    assert all(asked)


def test_a_switch_that_reads_what_nobody_gives_is_refused_at_the_start(run, upstream):
    with pytest.raises(InputError, match="margin") as error:
        check_gateway(recipe_of_gateway(run, "switch-cost0.05-seed0"))
    assert error.value.field == "gateway.switch"
    three = recipe(upstream.url).gateway.models
    many = recipe(upstream.url, models=[*three, three[1]], switch=f"{run}/switch-budget2-seed0")
    with pytest.raises(InputError, match="2 models, and here are 3"):
        Decider(many.gateway, 0)
    for name in ("no", None):
        with pytest.raises(InputError, match="switch-budget2-seed0"):
            recipe_of_gateway(run, name)
    with pytest.raises(InputError, match="no policy of a run"):
        check_gateway(recipe(upstream.url, switch="runs/none/switch-x"))


def test_runs_of_calls_and_what_a_model_may_catch_up_are_refused(run, tmp_path):
    """A client sends each model what it sends, and the gateway decides at every step."""
    copy = shutil.copytree(run, tmp_path / "run")
    own = copy / "checkpoints" / "switch-budget2-seed0"
    saved = SwitchPolicy.load(own)
    shutil.rmtree(own)
    SwitchPolicy(replace(saved.config, run_length=2), saved.tensors).save(own)
    with pytest.raises(InputError, match="in runs of 2 steps") as error:
        check_gateway(recipe_of_gateway(copy, own.name))
    assert error.value.field == "gateway.switch"
    told = json.loads((copy / "recipe.resolved.json").read_text())
    told["switch"]["models"][1]["catch_up"] = 2
    write_json(copy / "recipe.resolved.json", told)
    with pytest.raises(InputError, match="window or catch_up"):
        recipe_of_gateway(copy, own.name)
