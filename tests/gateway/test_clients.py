"""Clients and agents of others, unchanged, through the gateway: they learn its URL and nothing else."""

import json
import shutil
import subprocess

import pytest
from gateway_parts import HOST, answer_of, ask, chat, echo

KEY = "sk-client-0123456789"


def calls(body, name, arguments):
    call = {"id": f"t{len(body['messages'])}", "type": "function"}
    call["function"] = {"name": name, "arguments": json.dumps(arguments)}
    return answer_of(body, {"role": "assistant", "content": "I look.", "tool_calls": [call]}, 9, "tool_calls")


def sessions(answering):
    """(steps, calls) of each session of a gateway, and by whom each step was taken."""
    from atlas_ray.gateway.tables import sessions as table

    with answering.admission.store.transaction() as tx:
        return [(row.steps, row.spent_calls) for row in tx.rows(table.select())]


def url(port):
    return f"http://{HOST}:{port}/v1"


def test_curl_asks_and_streams(upstream, serve):
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    port, _ = serve(budget={"calls": 5})
    for stream in (False, True):
        command = [curl, "-sS", "-N", "-i", f"{url(port)}/chat/completions", "-H", "Content-Type: application/json"]
        done = subprocess.run(
            [*command, "-d", json.dumps(chat(f"stream {stream}", stream=stream))], capture_output=True, text=True
        )
        assert done.returncode == 0 and "x-atlas-budget-left: calls=" in done.stdout, done.stderr
        assert ("data: [DONE]" if stream else '"content": "to stream False I say yes"') in done.stdout


@pytest.fixture
def litellm(monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would fetch prices
    return pytest.importorskip("litellm", reason="litellm: needs the extra 'clients'")


def test_litellm_asks_streams_and_calls_tools(litellm, upstream, serve):
    port, answering = serve(budget={"calls": 9})
    where = {"model": "openai/londi", "api_base": url(port), "api_key": KEY}
    made = litellm.completion(messages=chat("hi")["messages"], **where)
    assert made.choices[0].message.content == "to hi I say yes" and made.usage.completion_tokens == 5
    parts = litellm.completion(messages=chat("more")["messages"], stream=True, **where)
    assert "".join(p.choices[0].delta.content or "" for p in parts) == "to more I say yes"
    upstream.script = lambda body: echo(body) if body["messages"][-1]["role"] == "tool" else calls(body, "look", {})
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    talk = chat("look around")["messages"]
    message = litellm.completion(messages=talk, tools=[tool], **where).choices[0].message
    talk += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "a wall"}]
    assert litellm.completion(messages=talk, tools=[tool], **where).choices[0].message.content == "to a wall I say yes"
    assert sorted(sessions(answering)) == [(1, 1), (1, 1), (2, 2)]
    refused = {**where, "model": "openai/deepthink@calls=0", "num_retries": 0}
    assert litellm.completion(messages=chat("none")["messages"], **refused).choices[0].message.content
    assert upstream.requests[-1]["model"] == "small", "no call was left"
    assert not any(KEY in str(headers) for headers in upstream.headers)


def test_litellm_names_a_session_by_its_trace(litellm, upstream, serve):
    port, answering = serve(budget={"calls": 9})
    where = {"model": "openai/londi", "api_base": url(port), "api_key": KEY}
    for said in ("one", "another"):
        headers = {"x-litellm-trace-id": "run 7"}
        litellm.completion(messages=chat(said)["messages"], extra_headers=headers, **where)
    assert sessions(answering) == [(2, 2)]


def test_mini_swe_agent_works_on_a_task_in_one_session(litellm, upstream, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("MSWEA_SILENT_STARTUP", "1")
    pytest.importorskip("minisweagent", reason="mini-swe-agent: needs the extra 'clients'")
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.environments.local import LocalEnvironment
    from minisweagent.models.litellm_model import LitellmModel

    commands = ["echo found > note.txt", "cat note.txt", "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT; cat note.txt"]
    upstream.script = lambda body: calls(
        body, "bash", {"command": commands[sum(m["role"] == "assistant" for m in body["messages"])]}
    )
    port, answering = serve(budget={"calls": 2, "tokens": 200_000})
    where = {"api_base": url(port), "api_key": KEY}
    model = LitellmModel(model_name="openai/londi", model_kwargs=where, cost_tracking="ignore_errors")
    agent = DefaultAgent(
        model, LocalEnvironment(cwd=str(tmp_path)), system_template="You act.", instance_template="Do this: {{task}}"
    )
    ended = agent.run("write a note")
    assert ended["exit_status"] == "Submitted" and ended["submission"].strip() == "found", ended
    assert (tmp_path / "note.txt").read_text() == "found\n"
    assert sessions(answering) == [(3, 2)], "three steps of one session, of which the budget allowed two calls"
    assert [body["model"] for body in upstream.requests] == ["large", "large", "small"]


def test_smolagents_calls_tools_in_one_session(upstream, serve):
    smolagents = pytest.importorskip("smolagents", reason="smolagents: needs the extra 'clients'")

    @smolagents.tool
    def look(where: str) -> str:
        """Look somewhere.

        Args:
            where: at what.
        """
        return f"a red ball at {where}"

    def script(body):
        if any("red ball at" in json.dumps(m) for m in body["messages"]):
            return calls(body, "final_answer", {"answer": "the ball is red"})
        return calls(body, "look", {"where": "the door"})

    upstream.script = script
    port, answering = serve(budget={"calls": 1, "tokens": 200_000})
    model = smolagents.OpenAIServerModel(model_id="londi", api_base=url(port), api_key=KEY)
    agent = smolagents.ToolCallingAgent(tools=[look], model=model, max_steps=4, verbosity_level=0)
    assert agent.run("of which colour is the ball?") == "the ball is red"
    assert len(upstream.requests) == 2 and [body["model"] for body in upstream.requests] == ["large", "small"]
    assert sessions(answering) == [(2, 1)]
    assert ask(port, None, path="/healthz", method="GET")[0] == 200
