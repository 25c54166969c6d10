"""Records of agents that call tools, in the shapes of mini-swe-agent, SWE-smith and tau-bench, made by us."""

import json
import random

from atlas_ray.data.records import PART_GAP, Part, Step, Trajectory
from atlas_ray.data.tool_calls import ToolCall, write_calls

BASH = {
    "type": "function",
    "function": {
        "name": "bash",
        "description": "Run a command",
        "parameters": {"type": "object", "properties": {"command": {"type": "string", "default": None}}},
    },
}
LOOK = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def call(name, arguments, key=None):
    """A call as OpenAI's API has it."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    named = {} if key is None else {"id": key}
    return {**named, "type": "function", "function": {"name": name, "arguments": text}}


def says(content=None, *calls, **more):
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def result(content, key=None, **more):
    return {"role": "tool", "content": content, **({} if key is None else {"tool_call_id": key}), **more}


def user(content, **more):
    return {"role": "user", "content": content, **more}


SYSTEM = {"role": "system", "content": "You can call tools."}


def chat(**more):
    """Parallel calls, a call with a thought, and a last word."""
    return {
        "messages": [
            SYSTEM,
            user("Which files are there?"),
            says("Both at once.", call("bash", {"command": "ls\n-l"}, "c1"), call("look_up", {}, "c2")),
            result("a.py", "c1"),
            result("nothing", "c2", name="look_up"),
            says(None, call("bash", {"command": "cat a.py", "n": [1, {"x": None}]}, "c3")),
            result("print('\u00e9')", "c3"),
            says("One: a.py."),
        ],
        "tools": [BASH, LOOK],
        **more,
    }


def mini(**more):
    """A trajectory of mini-swe-agent 2: one tool, a format error between, and the end as a message of its own."""
    actions = {"extra": {"actions": [{"command": "ls", "tool_call_id": "t1"}], "cost": 0.25, "timestamp": 1.5}}
    return {
        "info": {
            "model_stats": {"instance_cost": 0.5, "api_calls": 2},
            "config": {"agent": {"step_limit": 0}, "model": {"model_name": "some/model"}},
            "mini_version": "2.0.0",
            "exit_status": "Submitted",
            "submission": "diff --git a b",
        },
        "messages": [
            SYSTEM,
            user("Fix the issue."),
            says("I look.", call("bash", {"command": "ls"}, "t1"), function_call=None, **actions),
            result("<returncode>0</returncode>\n<output>\na.py</output>", "t1", extra={"returncode": 0}),
            user("No tool calls found in the response.", extra={"interrupt_type": "FormatError"}),
            says(None, call("bash", {"command": "submit"}, "t2"), extra={"cost": 0.25}),
            {"role": "exit", "content": "diff --git a b", "extra": {"exit_status": "Submitted"}},
        ],
        "trajectory_format": "mini-swe-agent-1.1",
        "instance_id": "owner__repo-1",
        **more,
    }


def mini_text(**more):
    """A trajectory of mini-swe-agent without tool calls: commands stand in the text."""
    record = mini(**more)
    record["messages"] = [
        SYSTEM,
        user("Fix the issue."),
        says("THOUGHT: look\n\n```mswea_bash_command\nls\n```", extra={"actions": [{"command": "ls"}]}),
        user("<returncode>0</returncode>"),
        says("THOUGHT: done\n\n```mswea_bash_command\nsubmit\n```"),
        user("", extra={"exit_status": "Submitted"}),
    ]
    return record


def smith(resolved=True, number=0, as_text=True):
    """A row of SWE-smith's trajectories, whose messages are a text of JSON and whose results have lists of ids."""
    about = {"agent": "main"}
    messages = [
        {**SYSTEM, "message_type": "system_prompt", **about},
        user([{"type": "text", "text": "Repair it."}], **about),
        says(
            "First I look.", call("bash", '{"command":"ls"}', "toolu_1"), thought="First I look.", action="ls", **about
        ),
        {
            "role": "tool",
            "content": [{"type": "text", "text": "OBSERVATION:\na.py", "cache_control": {"type": "ephemeral"}}],
            "tool_call_ids": ["toolu_1"],
            **about,
        },
        says("", call("submit", "", "toolu_2"), thought="", action="submit", **about),
    ]
    return {
        "messages": json.dumps(messages) if as_text else messages,
        "instance_id": "owner__repo.abc.func",
        "resolved": resolved,
        "model": "some-model",
        "traj_id": f"owner__repo.abc.func.{number}",
        "patch": "diff",
    }


def _smith_text(look, submit):
    """A row of SWE-smith's trajectories whose calls stand in the text: results come back as messages of a user."""
    row = smith()
    messages = [
        SYSTEM,
        user("Repair it."),
        says(look),
        user("OBSERVATION:\na.py\n<function=bash>\n```\nls\n```"),
        says(submit),
    ]
    return row | {"messages": json.dumps(messages)}


def smith_xml():
    """Its split ``xml``: calls as SWE-agent's XML, with the parameters that have lines of their own, and one alone."""
    look = "First I look.\n\n<function=str_replace_editor>\n<parameter=command>create</parameter>\n"
    look += "<parameter=file_text>\na < b\n\n</parameter>\n</function>"
    return _smith_text(look, "<function=submit>\n</function>")


def smith_ticks():
    """Its split ``ticks``: a thought and a command between backticks, with none and with some of its own."""
    return _smith_text("First I look.\n\n```\nls -l\ncat <<EOF\n```py\nEOF\n```", "\n\n```\nsubmit\n```")


def tau(reward=1.0, task=3, trial=0, **more):
    """A record of tau-bench: a customer, one call at a time, and the reward."""
    return {
        "task_id": task,
        "reward": reward,
        "info": {"task": {"user_id": "u", "actions": []}, "source": "user", "user_cost": 0.125, "reward_info": None},
        "traj": [
            SYSTEM,
            user("Cancel my order."),
            {"content": "Which one?", "role": "assistant"},
            user("Number 7."),
            says(None, call("look_up", {"order": 7}, "call_a")),
            {"role": "tool", "tool_call_id": "call_a", "name": "look_up", "content": '{"state": "open"}'},
            says("I cancel it.", call("cancel", {"order": 7}, "call_b")),
            {"role": "tool", "tool_call_id": "call_b", "name": "cancel", "content": "done"},
            {"content": "It is cancelled.", "role": "assistant"},
            user("###STOP###"),
        ],
        "trial": trial,
        **more,
    }


def tau2(reward=0.0):
    """A results file of tau2-bench with one simulation, in which the user calls a tool too."""
    flat = {"id": "c1", "name": "look_up", "arguments": {"line": "555"}, "requestor": "assistant"}
    theirs = {"id": "u1", "name": "toggle", "arguments": {}, "requestor": "user"}
    messages = [
        says("Hi! How can I help you?", turn_idx=0, cost=0.0),
        user("My phone is dead.", tool_calls=None),
        says(None, flat),
        {"id": "c1", "role": "tool", "content": "active", "requestor": "assistant", "error": False},
        says("Turn it on."),
        user(None, tool_calls=[theirs]),
        {"id": "u1", "role": "tool", "content": "on", "requestor": "user", "error": False},
        user("It works."),
        says("Good.", tool_calls=None),
    ]
    simulation = {
        "id": "sim-1",
        "task_id": "12",
        "trial": 1,
        "seed": 77,
        "termination_reason": "user_stop",
        "reward_info": None if reward is None else {"reward": reward, "info": {}},
        "messages": messages,
    }
    return {"timestamp": "t", "info": {"num_trials": 1}, "tasks": [{"id": "12"}], "simulations": [simulation]}


SHAPES = {
    "chat": chat(),
    "mini-swe-agent": mini(),
    "mini-swe-agent, text": mini_text(),
    "SWE-smith": smith(),
    "SWE-smith, list": smith(False, as_text=False),
    "SWE-smith, xml": smith_xml(),
    "SWE-smith, ticks": smith_ticks(),
    "tau-bench": tau(),
    "tau-bench, lost": tau(0.0),
}

_WORDS = (
    *("go", " ", "\n", "\n\n", "\u00e9", "\u2028", "\U0001f600", '"', "'", "\\", "\t", "{}", "[", "null", "\ue000"),
    *("<|im_end|>", "<|eot_id|>", "<think>", "</think>", "<tool_call>", "Action: x", "Observation:"),
)


def text(draw, most=6):
    return "".join(draw.choice(_WORDS) for _ in range(draw.randint(0, most)))


def _value(draw, depth=0):
    kinds = (lambda: text(draw), lambda: draw.randint(-9, 9**9), lambda: draw.random(), lambda: None, lambda: True)
    nested = (lambda: [_value(draw, depth + 1)], lambda: {text(draw, 2): _value(draw, depth + 1)})
    return draw.choice(kinds + nested if depth < 2 else kinds)()


def drawn(seed):
    """Any trajectory of an agent that calls tools, by its seed."""
    draw, steps, ids = random.Random(seed), [], []
    for _ in range(draw.randint(1, 5)):
        parts, texts = [], []
        for key in ids or ([None] if draw.random() < 0.9 else []):
            texts.append(text(draw))
            role = "user" if key is None else "tool"
            parts.append(
                Part(role=role, id=key, name=draw.choice([None, "bash"]) if key else None, length=len(texts[-1]))
            )
        plain = len(parts) == 1 and parts[0].role == "user"
        ids = [f"c{n}" for n in range(draw.randint(0, 3))]
        calls = [ToolCall("bash", {text(draw, 2) + str(n): _value(draw)}, key) for n, key in enumerate(ids)]
        steps.append(
            Step(
                observation=PART_GAP.join(texts),
                parts=None if plain else tuple(parts),
                thought=draw.choice([None, "", text(draw)]),
                action=write_calls(calls)
                if calls
                else draw.choice(["", write_calls([ToolCall("x", {})])[:-1], text(draw)]),
                reward=draw.random(),
                actor=draw.choice([None, "quick"]),
            )
        )
    return Trajectory(
        id=f"drawn-{seed}",
        env="e",
        task="t",
        seed=seed,
        instruction=draw.choice(["", "Rules.", text(draw)]),
        steps=tuple(steps),
        score=draw.choice([None, 0.5]),
        success=draw.choice([None, False]),
        source="s",
        tools=draw.choice([(), (BASH,), (BASH, LOOK)]),
    )
