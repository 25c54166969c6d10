"""The table of an endpoint in a recipe: one set of fields for the oracle and for the models of a switch."""

import json

import pytest
from chat_server import ChatServer, answer, status
from pydantic import ValidationError

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.engines.endpoint import open_endpoint
from atlas_ray.errors import EndpointError, InputError
from atlas_ray.recipe.endpoint import EndpointFields
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.recipe.select import Oracle
from atlas_ray.recipe.switch import SwitchModel
from atlas_ray.switching.players import check_players, close_players, open_players

URL = "http://127.0.0.1:9/v1"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    made = ChatServer()
    yield made
    made.kill()


def served(**fields):
    return SwitchModel(model="m", **{"base_url": URL, **fields})


def ask(fields, **kwargs):
    endpoint = open_endpoint(fields, 2, "switch.models.1")
    try:
        return endpoint.complete([[{"role": "user", "content": "hi"}]], max_tokens=fields.max_tokens, **kwargs)[0]
    finally:
        endpoint.close()


def test_defaults_are_those_of_before():
    assert Oracle().model_dump(exclude=["extra", "headers", "send_system", "stop_after"]) == {
        "model": "smollm2-135m",
        "base_url": None,
        "key_variable": "OPENAI_API_KEY",
        "concurrency": 8,
        "rate": None,
        "timeout": 120.0,
        "retries": 4,
        "limit_field": "max_tokens",
        "context": 32_768,
        "max_tokens": 4096,
        "temperature": 0.0,
        "max_reprompts": 2,
        "batch": 16,
        "send_schema": True,
        "price_prompt": 0.0,
        "price_completion": 0.0,
    }
    model = SwitchModel(model="m")
    assert (model.max_tokens, model.context, model.timeout, model.retries, model.weight) == (256, None, 60.0, 4, None)
    assert (model.temperature, model.rate, model.limit_field, model.extra, model.headers) == (
        0,
        None,
        "max_tokens",
        {},
        {},
    )
    for kind in (Oracle, SwitchModel):
        assert kind.model_fields.keys() >= EndpointFields.model_fields.keys()


@pytest.mark.parametrize(("given", "warmth"), [(0, 0.0), (0.7, 0.7), ("unset", None), (None, None)])
def test_a_temperature_is_a_number_or_unset(given, warmth):
    made = served(temperature=given)
    assert made.warmth == warmth
    assert SwitchModel.model_validate_json(json.dumps(made.model_dump(mode="json"))) == made


@pytest.mark.parametrize("given", [-1, True, "warm", "0", float("inf"), float("nan"), [0]])
def test_what_is_no_temperature_is_refused(given):
    with pytest.raises(ValidationError, match="must be a number of at least 0, or 'unset'"):
        served(temperature=given)


def test_all_fields_reach_the_server(server, monkeypatch):
    monkeypatch.setenv("ORG_KEY", "s3cret")
    fields = served(
        base_url=server.url,
        limit_field="max_completion_tokens",
        max_tokens=2000,
        temperature="unset",
        extra={"reasoning_effort": "low"},
        headers={"api-key": "$ORG_KEY", "X-Title": "mine", "X-Both": "a ${ORG_KEY} b"},
    )
    ask(fields, temperature=fields.warmth)
    body = server.requests[0][1]
    assert body["max_completion_tokens"] == 2000 and body["reasoning_effort"] == "low"
    assert not {"temperature", "max_tokens"} & set(body)
    sent = server.headers[0]
    assert (sent["api-key"], sent["X-Title"], sent["X-Both"]) == ("s3cret", "mine", "a s3cret b")


def test_a_header_may_carry_the_key_in_place_of_key_variable(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another")
    monkeypatch.setenv("OWN", "mine")
    ask(served(base_url=server.url, headers={"authorization": "Token $OWN"}))
    assert server.headers[0].get_all("Authorization") == ["Token mine"]


def test_what_a_header_holds_is_shown_nowhere(server, monkeypatch, caplog):
    monkeypatch.setenv("ORG_KEY", "s3cret/0")
    caplog.set_level("DEBUG")
    server.script = lambda body: {"error": "wrong api-key s3cret/0"}
    with pytest.raises(EndpointError, match=r"wrong api-key \[key\]") as caught:
        ask(served(base_url=server.url, retries=1, headers={"api-key": "$ORG_KEY"}))
    assert "s3cret" not in f"{caught.value!r}{caplog.text}"
    endpoint = ChatEndpoint(URL, "m", headers={"X-Mode": "fast", "api-key": "$ORG_KEY", "token": "in clear"})
    assert repr(endpoint).endswith("headers={'X-Mode': 'fast', 'api-key': '$ORG_KEY', 'token': '...'})")
    endpoint.close()


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Authorization": "Bearer abc"}, r"Authorization seems to hold a secret.*\$VARIABLE.*key_variable"),
        ({"api-key": "abc"}, "api-key seems to hold a secret"),
        ({"Ocp-Apim-Subscription-Key": "abc"}, "seems to hold a secret"),
        ({"X-Custom": "Bearer abc"}, "X-Custom seems to hold a secret"),
        ({"X-Custom": "sk-abc"}, "X-Custom seems to hold a secret"),
        ({"Cookie": "a=b"}, "Cookie seems to hold a secret"),
        ({"Content-Length": "3"}, "Content-Length is set by us"),
        ({"X-A": "1", "x-a": "2"}, "x-a stands twice"),
        ({"X A": "1"}, "cannot be sent as a header"),
        ({"X-A": "1\r\nX-B: 2"}, "cannot be sent as a header"),
    ],
)
def test_secrets_and_what_is_no_header_are_refused(headers, words):
    with pytest.raises(ValidationError, match=words):
        served(headers=headers)


def test_headers_that_are_no_secrets_may_be_written():
    plain = {"HTTP-Referer": "https://a.b", "OpenAI-Organization": "org", "X-Session-Id": "7", "X-Author": "me"}
    assert served(headers=plain).headers == plain


def test_what_a_decision_depends_on_is_the_same_before_and_after_a_fallback(server):
    agent = ChatAgent(open_endpoint(served(base_url=server.url), 1, "x"), "action")
    agent.start(0, "go", [], "a room")
    server.script = lambda body: "look"
    server.faults = [status(400, {"error": {"message": "System role not supported"}})]
    before = agent.key(0, ["look"])
    assert agent.act([0], [["look"]], [0])[0].action == "look"
    assert agent.key(0, ["look"]) == before
    assert [m["role"] for _, body, _ in server.requests for m in body["messages"]] == ["system", "user", "user"]
    agent.engine.close()


@pytest.mark.parametrize("key", ["sk-abc123", "hf_abcdef", "two words", "$KEY"])
def test_a_key_in_place_of_its_variable_is_refused_without_being_shown(tmp_path, key):
    path = tmp_path / "r.toml"
    path.write_text(REASONING.replace("NONE_SET", key))
    with pytest.raises(InputError, match=r"r.toml:12: switch.models.1.key_variable: must be the name of") as caught:
        load(path)
    assert key not in str(caught.value)
    path.write_text(REASONING.replace("NONE_SET", ""))
    check_players(load(path))


@pytest.mark.parametrize(
    "extra", ["{ a = 2020-01-01 }", "{ a = nan }", "{ a = { b = [inf] } }", "{ api_key = 'x' }", "3", "[1]"]
)
def test_what_cannot_be_sent_is_refused_with_its_line(tmp_path, extra):
    path = tmp_path / "r.toml"
    path.write_text(
        REASONING.replace('[switch.models.extra]\nreasoning_effort = "low"', "").replace("rate = 5", f"extra = {extra}")
    )
    with pytest.raises(InputError, match=r"r.toml:17: switch.models.1.extra") as caught:
        load(path)
    assert caught.value.field.startswith("switch.models.1.extra")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"api_key": "abc"}, "api_key seems to hold a secret"),
        ({"auth": [{"client_secret": "abc"}]}, "client_secret seems to hold a secret"),
        ({"temperature": 1}, "temperature is no field to add"),
        ({"stream": True}, "stream is no field to add"),
    ],
)
def test_fields_that_may_not_be_added_are_refused(extra, words):
    with pytest.raises(ValidationError, match=words):
        served(extra=extra)


def test_a_variable_that_is_not_set_names_the_field(monkeypatch):
    monkeypatch.delenv("ORG_KEY", raising=False)
    with pytest.raises(InputError, match="environment variable ORG_KEY is not set") as caught:
        open_endpoint(served(headers={"api-key": "$ORG_KEY"}), 1, "switch.models.1")
    assert caught.value.field == "switch.models.1.headers.api-key"
    monkeypatch.setenv("ORG_KEY", "abc")
    with pytest.raises(InputError, match="would send the header api-key unencrypted") as caught:
        open_endpoint(served(base_url="http://example.com/v1", headers={"api-key": "$ORG_KEY"}), 1, "select.oracle")
    assert caught.value.field == "select.oracle.base_url"


REASONING = """\
name = "c01"
[switch]
unit = "money"
levels = ["GoToLocalS5N2"]
costs = [0.02]
num_envs = 4
[[switch.models]]
model = "tiny-quick"
[[switch.models]]
model = "gpt-5-mini"
base_url = "http://127.0.0.1:9101/v1"
key_variable = "NONE_SET"
limit_field = "max_completion_tokens"
temperature = "unset"
timeout = 300
retries = 2
rate = 5
max_tokens = 2000
price_completion = 1.0
[switch.models.headers]
X-Title = "mine"
[switch.models.extra]
reasoning_effort = "low"
"""


def test_a_reasoning_model_is_a_model_of_the_switch(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(REASONING)
    recipe = load(path)
    check_players(recipe)
    assert Recipe.model_validate(json.loads(json.dumps(recipe.model_dump(mode="json")))) == recipe
    own = recipe.model_copy(update={"switch": recipe.switch.model_copy(update={"models": recipe.switch.models[1:]})})
    state = WorkerState()
    (large,) = open_players(own, state)
    engine = large.engine
    assert (engine.limit_field, engine.timeout, engine.retries, engine.deadline) == (
        "max_completion_tokens",
        300,
        2,
        900,
    )
    assert (large.max_tokens, large.temperature, engine.extra) == (2000, None, {"reasoning_effort": "low"})
    close_players(state)


def test_a_bad_field_is_named_with_its_line(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(REASONING.replace('"unset"', '"warm"'))
    with pytest.raises(InputError, match=r"r.toml:14: switch.models.1.temperature: must be a number of at least 0"):
        load(path)


def test_a_local_model_takes_no_fields_of_a_server():
    for field in ({"timeout": 5.0}, {"temperature": "unset"}, {"extra": {"a": 1}}, {"send_system": False}):
        table = {"models": ["tiny-quick", {"model": "m", **field}], "levels": ["GoToLocal"], "costs": [0.1]}
        with pytest.raises(InputError, match="is a server's, and base_url is missing") as caught:
            check_players(Recipe.model_validate({"name": "x", "switch": table}))
        assert caught.value.field == f"switch.models.1.{next(iter(field))}"


def test_without_system_messages_the_first_user_message_begins_with_it(server):
    server.script = lambda body: answer(json.dumps(body["messages"]))
    endpoint = open_endpoint(served(base_url=server.url, send_system=False), 1, "x")
    talk = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))]
    (made,) = endpoint.complete([[*talk, {"role": "user", "content": "d"}]], max_tokens=5)
    assert json.loads(made.text) == [
        {"role": "user", "content": "s\n\na"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c\n\nd"},
    ]
    endpoint.close()
