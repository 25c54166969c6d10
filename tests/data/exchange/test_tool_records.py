"""Records of agents that call tools: what is a step, what comes back, and what is refused."""

import copy
import json

import pytest
from exchange_records import refused, write
from tool_records import BASH, LOOK, SHAPES, SYSTEM, call, chat, drawn, mini, result, says, smith, tau, tau2, user

from atlas_ray.data.exchange import (
    Notices,
    Options,
    check_file,
    export_agenttraj,
    export_messages,
    export_run,
    import_annotations,
    import_file,
    import_messages,
)
from atlas_ray.data.tool_calls import readable
from atlas_ray.trajectory import (
    Annotation,
    Part,
    ToolCall,
    Trajectory,
    calls_of,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_calls,
    write_trajectories,
)


def imported(tmp_path, *records, **options):
    """The trajectories of a run that was made of these records."""
    import_file(write(tmp_path / "in.json", *records), tmp_path / "run", **options)
    return read_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl")


def exported(tmp_path, fmt="original", name="out.json", selector=None, flag=None):
    out = export_run(tmp_path / "run", selector, fmt, flag, tmp_path / name)
    return json.loads(out.read_text()) if out.suffix == ".json" else [*map(json.loads, out.read_text().splitlines())]


# --- what is read ---


def test_a_message_with_calls_is_a_step_and_results_are_its_observation(tmp_path):
    (item,) = imported(tmp_path, chat())
    assert item.tools == (BASH, LOOK) and item.instruction == "You can call tools."
    first, second, third = item.steps
    assert (first.observation, first.parts, first.thought) == ("Which files are there?", None, "Both at once.")
    assert first.action == (
        '[{"name": "bash", "arguments": {"command": "ls\\n-l"}, "id": "c1"}, '
        '{"name": "look_up", "arguments": {}, "id": "c2"}]'
    )
    assert calls_of(first.action) == (ToolCall("bash", {"command": "ls\n-l"}, "c1"), ToolCall("look_up", {}, "c2"))
    assert second.observation == "a.py\n\nnothing" and second.thought is None
    assert second.seen() == (
        (Part(role="tool", id="c1", length=4), "a.py"),
        (Part(role="tool", id="c2", name="look_up", length=7), "nothing"),
    )
    assert (third.observation, third.action, third.thought) == ("print('\u00e9')", "One: a.py.", None)
    assert (item.success, item.score) == (None, None)


def test_mini_swe_agent(tmp_path):
    (item,) = imported(tmp_path, mini())
    assert (item.id, item.env, item.task, item.source) == (
        "owner__repo-1",
        "mini-swe-agent",
        "owner__repo-1",
        "some/model",
    )
    assert item.success is None, "submitted is not solved"
    assert [part.role for part, _ in item.steps[1].seen()] == ["tool", "user"]
    assert [calls_of(s.action)[0].arguments["command"] for s in item.steps] == ["ls", "submit"]
    assert item.tools == ()


def test_mini_swe_agent_lays_out_a_folder_for_each_run(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / f"{name}.traj.json").write_text(json.dumps(mini(instance_id=name), indent=2))
    (tmp_path / "out" / "preds.json").write_text("{}")
    assert check_file(tmp_path / "out") == "tool calls"
    assert import_file(tmp_path / "out", tmp_path / "run") == 2
    assert exported(tmp_path) == [mini(instance_id="a"), mini(instance_id="b")]


def test_commands_in_the_text_of_mini_swe_agent_are_actions_word_by_word(tmp_path):
    (item,) = imported(tmp_path, SHAPES["mini-swe-agent, text"])
    assert item.steps[0].action == "THOUGHT: look\n\n```mswea_bash_command\nls\n```"
    assert calls_of(item.steps[0].action) is None and len(item.steps) == 2


def test_swe_smith(tmp_path):
    won, lost = imported(tmp_path, smith(True), smith(False, 1))
    assert (won.id, won.env, won.task, won.source) == (
        "owner__repo.abc.func.0",
        "SWE-smith",
        "owner__repo.abc.func",
        "some-model",
    )
    assert (won.success, won.score, lost.success, lost.score) == (True, 1.0, False, 0.0)
    assert won.steps[1].seen() == ((Part(role="tool", id="toolu_1", length=17), "OBSERVATION:\na.py"),)
    assert won.steps[1].thought is None and calls_of(won.steps[1].action) == (ToolCall("submit", {}, "toolu_2"),)


@pytest.mark.parametrize("shape", ["SWE-smith, xml", "SWE-smith, ticks"])
def test_calls_in_the_text_of_swe_smith_are_actions_word_by_word(tmp_path, shape):
    told = [message["content"] for message in json.loads(SHAPES[shape]["messages"])]
    (item,) = imported(tmp_path, SHAPES[shape])
    assert (item.id, item.env, item.success, item.tools) == ("owner__repo.abc.func.0", "SWE-smith", True, ())
    assert [(s.observation, s.thought, s.action) for s in item.steps] == [
        ("Repair it.", None, told[2]),
        (told[3], None, told[4]),
    ]
    assert [(s.parts, calls_of(s.action)) for s in item.steps] == [(None, None)] * 2


def test_tau_bench_says_the_outcome_and_answers_to_users_are_steps(tmp_path):
    won, lost = imported(tmp_path, tau(1.0), tau(0.0, task=4, trial=2))
    assert (won.success, won.score, lost.success, lost.score) == (True, 1.0, False, 0.0)
    assert (lost.id, lost.env, lost.task, lost.seed) == ("tau-bench_4_2", "tau-bench", "4", 2)
    assert [s.reward for s in won.steps] == [0, 0, 0, 1]
    assert [calls_of(s.action) is not None for s in won.steps] == [False, True, True, False]
    assert won.steps[2].thought == "I cancel it."


@pytest.mark.parametrize(("reward", "success"), [(0.0, False), (1.0, True), (None, None)])
def test_tau2_bench_hides_what_users_do_with_tools_of_their_own(tmp_path, reward, success):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(tau2(reward)))
    (item,) = import_messages(path)
    assert (item.id, item.env, item.task, item.seed, item.success) == ("sim-1", "tau2-bench", "12", 77, success)
    assert [s.observation for s in item.steps] == ["", "My phone is dead.", "active", "It works."]
    assert item.steps[0].parts == () and item.steps[3].parts is None
    assert calls_of(item.steps[1].action) == (ToolCall("look_up", {"line": "555"}, "c1"),)


def test_what_a_tool_prints_is_no_outcome(tmp_path):
    record = chat()
    record["messages"].append(user("reward = 1.0, success: true"))
    (item,) = imported(tmp_path, record)
    assert item.success is None
    (item,) = import_messages(tmp_path / "in.json", success=False)
    assert (item.success, item.score) == (False, 0.0)


def test_content_may_be_missing_a_list_or_of_the_old_kind(tmp_path):
    old = {"role": "assistant", "function_call": {"name": "bash", "arguments": '{"command": "ls"}'}}
    messages = [
        SYSTEM,
        {"role": "developer", "content": "Be brief."},
        user([{"type": "text", "text": "Go"}, {"type": "text", "text": " on"}]),
        old,
        {"role": "function", "name": "bash", "content": "a.py"},
        says("", call("bash", "")),
        result("x"),
        says("", call("bash", {"command": "ls"}), reasoning_content="why"),
    ]
    (item,) = imported(tmp_path, {"messages": messages, "functions": [BASH["function"]]})
    assert item.instruction == "You can call tools.\n\nBe brief." and item.tools == (BASH,)
    assert item.steps[0].observation == "Go on" and calls_of(item.steps[1].action) == (ToolCall("bash", {}),)
    assert item.steps[1].seen() == ((Part(role="tool", name="bash", length=4), "a.py"),)
    assert [s.thought for s in item.steps] == [None, None, "why"]


def test_reasoning_beside_a_content_is_left_out_and_counted_or_stands_before_it(tmp_path):
    record = {"messages": [user("o"), says("<think>a</think>b", call("x", {}), reasoning="c")]}
    notices = Notices()
    (item,) = imported(tmp_path, record, notices=notices)
    assert item.steps[0].thought == "b" and notices.counts["reasoning"] == 1
    (item,) = import_messages(tmp_path / "in.json", reasoning="thought")
    assert item.steps[0].thought == "c\n\na\n\nb"


def test_tools_that_records_do_not_say_are_given(tmp_path):
    given = Options(tools=(BASH,))
    assert [t.tools for t in imported(tmp_path, tau(), options=given)] == [(BASH,)]
    assert exported(tmp_path) == [tau()]
    assert [t.tools for t in import_messages(write(tmp_path / "b.json", chat()), tools=[LOOK])] == [(BASH, LOOK)]


# --- in and out ---


@pytest.mark.parametrize("shape", SHAPES)
def test_records_come_back_with_every_key(tmp_path, shape):
    record = copy.deepcopy(SHAPES[shape])
    items = imported(tmp_path, record)
    assert exported(tmp_path) == [SHAPES[shape]]
    messages = exported(tmp_path, "messages", "m.jsonl", flag="train")
    assert import_messages(tmp_path / "m.jsonl") == items
    told = SHAPES[shape].get("messages") or SHAPES[shape]["traj"]
    told = json.loads(told) if isinstance(told, str) else told
    assert [{k: v for k, v in m.items() if k != "train"} for m in messages[0]["messages"]] == told
    # a file of ours, of nothing but the trajectories
    export_messages(tmp_path / "n.jsonl", items)
    assert import_messages(tmp_path / "n.jsonl") == items
    write_trajectories(tmp_path / "t.jsonl", items)
    assert read_trajectories(tmp_path / "t.jsonl") == items


def test_any_trajectory_comes_back_exactly(tmp_path):
    items = [drawn(seed) for seed in range(40)]
    export_messages(tmp_path / "a.jsonl", items)
    for options in ({}, {"reasoning": "thought"}, {"tools": [LOOK], "success": True}):
        assert import_messages(tmp_path / "a.jsonl", **options) == items
    write_trajectories(tmp_path / "b.jsonl", items)
    assert read_trajectories(tmp_path / "b.jsonl") == items
    assert Trajectory.model_validate_json(json.dumps(items[0].row()), strict=True) == items[0]


def test_calls_are_one_text_and_every_other_text_is_none():
    for item in (drawn(seed) for seed in range(20)):
        for step in item.steps:
            calls = calls_of(step.action)
            assert calls is None or write_calls(calls) == step.action
            for broken in (step.action[:-1], step.action + " ", step.action.replace('", "', '","', 1)):
                assert broken == step.action or calls_of(broken) is None
    twice = write_calls([ToolCall("x", {"b": 1, "a": [True, None, "\u00e9"]}), ToolCall("y", {}, "2")])
    assert twice == '[{"name": "x", "arguments": {"b": 1, "a": [true, null, "\u00e9"]}}, ' + (
        '{"name": "y", "arguments": {}, "id": "2"}]'
    )
    assert readable(twice) == 'call x\n  b: 1\n  a: [true, null, "\u00e9"]\ncall y [2] without arguments'
    assert readable(write_calls([ToolCall("x", {"s": "a\nb"})])) == "call x\n  s:\n    a\n    b"
    assert readable("plain\ntext") == "plain\ntext"


def test_marks_go_out_and_come_in(tmp_path):
    items = imported(tmp_path, mini(), chat(id="c"))
    marks = [Annotation(trajectory_id=t.id, selector="oracle", fraction=0.3, critical=(1,)) for t in items]
    write_annotations(tmp_path / "run" / "annotations" / "oracle.jsonl", marks)
    records = exported(tmp_path, selector="oracle", flag="loss")
    assert [m["loss"] for m in records[0]["messages"]] == [n == 5 for n in range(7)]
    assert [m["loss"] for m in records[1]["messages"]] == [n == 5 for n in range(8)]
    told = exported(tmp_path, "messages", "m.jsonl", "oracle", "weight")
    assert [m.get("weight") for m in told[1]["messages"]] == [None, None, 0, None, None, 1, None, 0]
    assert set(told[1]) == {"messages", "tools"} and "tool_call_id" in told[1]["messages"][3]
    exported(tmp_path, "messages", "n.jsonl", "oracle")
    assert import_annotations(tmp_path / "n.jsonl") == marks
    import_file(tmp_path / "n.jsonl", tmp_path / "again")
    assert read_annotations(tmp_path / "again" / "annotations" / "oracle.jsonl", items) == marks


def test_a_changed_trajectory_is_written_anew_and_has_no_original(tmp_path):
    (item,) = import_messages(write(tmp_path / "a.json", mini()))
    changed = item.model_copy(update={"steps": item.steps[:1]})
    export_messages(tmp_path / "b.jsonl", [changed])
    messages = json.loads((tmp_path / "b.jsonl").read_text())["messages"]
    assert [set(m) - {"trainable"} for m in messages[-1:]] == [{"role", "content", "tool_calls"}]
    assert import_messages(tmp_path / "b.jsonl") == [changed]
    imported(tmp_path, mini())
    rows = [t.model_copy(update={"steps": t.steps[:1]}) for t in import_messages(tmp_path / "in.json")]
    write_trajectories(tmp_path / "run" / "trajectories" / "expert.jsonl", rows)
    error = refused(export_run, tmp_path / "run", None, "original", None, tmp_path / "c.json")
    assert "no original" in error.message and not (tmp_path / "c.json").exists()
    assert "AgentTraj-L has no form" in refused(export_agenttraj, tmp_path / "d.json", rows).message


# --- what is refused ---

FIRST = [SYSTEM, user("o")]


@pytest.mark.parametrize(
    ("messages", "field", "says_"),
    [
        ([*FIRST, says(None, call("x", '{"a": '))], "[2].tool_calls[0].function.arguments", "no JSON at column"),
        ([*FIRST, says(None, call("x", "[1]"))], "[2].tool_calls[0].function.arguments", "must be a JSON object"),
        ([*FIRST, says(None, call("x", '{"a": NaN}'))], "[2].tool_calls[0].function.arguments", "no number"),
        ([*FIRST, says(None, call("x", '{"a": 1, "a": 2}'))], "[2].tool_calls[0].function.arguments", "twice"),
        ([*FIRST, says(None, call("x", '{"a": "\\ud800"}'))], "[2].tool_calls[0].function.arguments", "surrogate"),
        ([*FIRST, says(None, call("x", "[" * 9999))], "[2].tool_calls[0].function.arguments", ""),
        ([*FIRST, says(None, call("", {}))], "[2].tool_calls[0].function.name", "name of a tool"),
        ([*FIRST, says(None, call("x", {}) | {"id": 3})], "[2].tool_calls[0].id", "must be a text"),
        ([*FIRST, says(None, call("x", {}) | {"type": "custom"})], "[2].tool_calls[0].type", "must be 'function'"),
        ([*FIRST, says(None, "x")], "[2].tool_calls[0]", "must be a JSON object"),
        ([*FIRST, says(None, tool_calls="bash")], "[2].tool_calls", "no JSON"),
        ([*FIRST, says(None, tool_calls={"name": "x"})], "[2].tool_calls", "must be a list"),
        ([*FIRST, says(None, call("x", {})), result("r"), says("")], "[4].content", "says nothing"),
        ([*FIRST, says(None), result("r"), says("x", call("x", {}))], "[2].content", "says nothing"),
        ([*FIRST, result("r"), says("x", call("x", {}))], "[2].role", "none was called before"),
        ([*FIRST, says(None, call("x", {}, "1")), result("r", "2"), says("y")], "[3].tool_call_id", "'2', which was"),
        ([*FIRST, says(None, call("x", {}, "1")), {"role": "tutor"}], "[3].role", "must be one of"),
        ([*FIRST, says(None, call("x", {})), result({"a": 1}), says("y")], "[3].content[0].text", "must be a string"),
        ([*FIRST, says(None, call("x", {})), result([{"type": "image_url"}]), says("y")], "[3].content[0]", "text"),
        ([*FIRST, says(write_calls([ToolCall("x", {})])), result("r")], "[2].content", "reads like tool calls"),
        ([*FIRST, says(None, call("x", {})), {"role": "exit"}, says("y")], "[3].role", "goes on behind it"),
        ([*FIRST, says(None, call("x", {})), 3], "[3]", "must be a JSON object"),
        ([*FIRST, result("r")], "[2].role", "none of the agent"),
    ],
)
def test_what_is_no_message_is_refused(tmp_path, messages, field, says_):
    path = write(tmp_path / "a.jsonl", chat(), {"messages": messages, "tools": [BASH]})
    error = refused(import_file, path, tmp_path / "run")
    assert (error.line, error.field) == (2, f"messages{field}") and says_ in error.message
    assert not (tmp_path / "run").exists()
    notices = Notices()
    assert import_file(path, tmp_path / "run", on_bad="skip", notices=notices) == 1 and len(notices.bad) == 1


def test_a_run_that_failed_before_it_began_is_refused_and_can_be_left_out(tmp_path):
    failed = tau(0.0, traj=[], info={"error": "Rate limit\nreached", "traceback": "..."})
    path = write(tmp_path / "a.json", failed, tau())
    error = refused(import_file, path, tmp_path / "run")
    assert error.field == "[0].traj" and "the run failed: Rate limit reached" in error.message
    assert import_file(path, tmp_path / "run", on_bad="skip") == 1


def test_records_that_are_left_out_are_counted_by_reason(tmp_path):
    failed = [tau(0.0, n, traj=[], info={"error": "Rate limit"}) for n in range(3)]
    broken = copy.deepcopy([tau(), tau()])
    for record, field in zip(broken, (4, 6), strict=True):
        record["traj"][field]["tool_calls"][0]["function"]["arguments"] = "{"
    notices = Notices()
    import_file(write(tmp_path / "a.json", *failed, *broken, tau()), tmp_path / "run", on_bad="skip", notices=notices)
    (event,) = [values for kind, values in notices.events() if kind == "dropped"]
    assert list(event["reasons"].values()) == [3, 2]
    (line,) = [line for line in notices.lines() if "of all" in line]
    assert "3 times [0].traj: is empty, because the run failed: Rate limit; 2 times [3].traj[4].tool_calls" in line


@pytest.mark.parametrize("tools", ["{", [3], [{"type": "function"}], {"name": "x"}])
def test_tools_must_be_schemas(tmp_path, tools):
    error = refused(check_file, write(tmp_path / "a.jsonl", chat(tools=tools)))
    assert error.field.startswith("tools")


@pytest.mark.parametrize("parts", [[{"role": "tool", "length": 9}], [{"role": "gpt", "length": 4}], []])
def test_parts_that_do_not_fit_are_refused(tmp_path, parts):
    (item,) = import_messages(write(tmp_path / "a.json", chat()))
    row = item.row()
    row["steps"][1]["parts"] = parts
    path = write(tmp_path / "b.jsonl", row)
    error = refused(read_trajectories, path)
    assert error.line == 1 and error.field.startswith("steps.1")
