"""What replies say, and what they do not: a reply never becomes an action that it does not name."""

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas_ray.exchange.turns import compose
from atlas_ray.parsing import LONGEST_REPLY, Parsed, Tally, parse

MOVES = ("turn left", "turn right", "go forward", "pick up", "drop", "toggle")
OK = "ok"


@pytest.mark.parametrize(
    ("reply", "thought", "action"),
    [
        ("Thought: The ball is left.\nAction: turn left", "The ball is left.", "turn left"),
        ("Thought:\nIt is left.\n\nAction:\nturn left", "It is left.", "turn left"),
        ("thought: a\r\nACTION : Turn  Left.\r\n", "a", "turn left"),
        ("**Thought:** a\n**Action:** turn left", "a", "turn left"),
        ("**Thought**: a\n**Action**: `turn left`", "a", "turn left"),
        ("**Action: turn left**", None, "turn left"),
        ("**Thought: a**\n**Action: turn left**", "a", "turn left"),
        ("### Thought: a\n### Action: turn left", "a", "turn left"),
        ("- Thought: a\n- Action: turn_left", "a", "turn left"),
        ("Thought:a\nAction:turn left", "a", "turn left"),
        ("Sure! Here it is.\nThought: a\nAction: turn left", "a", "turn left"),
        ("I see a ball.\nAction: turn left", "I see a ball.", "turn left"),
        ("Action: turn left", None, "turn left"),
        ("Thought:\n\nAction: turn left", "", "turn left"),
        ("Thought: a. Action: turn left", "a.", "turn left"),
        ("Thought: a\nb\n\nc\nAction: turn left", "a\nb\n\nc", "turn left"),
        ("Thought: a\nAction:\n```\nturn left\n```", "a", "turn left"),
        ("Thought: a\nAction: ```text\nturn left\n```\nbecause", "a", "turn left"),
        ("```\nThought: a\nAction: turn left\n```", "a", "turn left"),
        ("```\nsomething\nAction: turn left\n```", "something", "turn left"),
        ("Thought: a\nAction: ```turn left```", "a", "turn left"),
        ('Thought: a\nAction: "turn left"', "a", "turn left"),
        ("Thought: a\nAction: “turn left”", "a", "turn left"),
        ("Thought: a\nAction: turn left\n\nThis brings the ball ahead.", "a", "turn left"),
        ("Thought: a\nAction: turn left. Then I see more.", "a", "turn left"),
        ("Thought: a\nAction: turn left (the ball is there)", "a", "turn left"),
        ("Thought: a\nAction: drop\nThought: b\nAction: turn left", "a\nAction: drop\nThought: b", "turn left"),
        ("Thought: a\nAction: turn left\nObservation: You see a key\nThought: b\nAction: drop", "a", "turn left"),
        ("Thought: a\nObservation: is what I need\nAction: drop", "a\nObservation: is what I need", "drop"),
        ("<think>Action: drop?</think>\nThought: a\nAction: turn left", "a", "turn left"),
        ("Thought\uff1aa\nAction\uff1a turn left", "a", "turn left"),
        ("turn left", None, "turn left"),
        ("```\nTurn left!\n```", None, "turn left"),
    ],
)
def test_thought_and_action_are_found(reply, thought, action):
    assert parse(reply, "react", MOVES) == Parsed(thought, action, OK)


@pytest.mark.parametrize(
    ("reply", "problem", "action"),
    [
        ("", "empty", None),
        (" \n\t ", "empty", None),
        ("I would go on.", "no action", None),
        ("Thought: a", "no action", None),
        ("Thought: a\nAction:", "no action", None),
        ("Thought: a\nAction: \n```\n```", "no action", None),
        ("Thought: drop\nAction: drop\nAction:", "no action", None),
        ("Action: fly", "not admissible", "fly"),
        ("Action: turn", "not admissible", "turn"),
        ("Action: left", "not admissible", "left"),
        ("Action: turn left twice", "not admissible", "turn left twice"),
        ("Action: turn left or turn right", "not admissible", "turn left or turn right"),
        ("Action: do not turn left", "not admissible", "do not turn left"),
        ("Action: turnleft", "not admissible", "turnleft"),
        ("Action: turn left<|im_end|>", "not admissible", "turn left<|im_end|>"),
        ("Action: ...", "not admissible", "..."),
        ("Action: I will\nturn left", "not admissible", "I will"),
        (f"Action: {'x' * 1001}", "too long", None),
        (f"Action: turn left\n{'x' * LONGEST_REPLY}", "too long", None),
    ],
)
def test_what_is_no_action_says_what_it_is(reply, problem, action):
    made = parse(reply, "react", MOVES)
    assert (made.problem, made.action) == (problem, action)


@pytest.mark.parametrize(
    ("admissible", "written", "found"),
    [
        (("set 1", "set -1"), "set -1", "set -1"),
        (("set 1",), "set -1", None),
        (("set 1",), "Set '-1'", None),
        (("wait 1.5", "wait 15"), "wait 1.5 .", "wait 1.5"),
        (("wait 15",), "wait 1.5", None),
        (("go 12",), "go 1 2", None),
        (("click[a-b]", "click[a b]"), "click[a b]", "click[a b]"),
        (("click[a-b]", "click[a b]"), "Click a b", None),
        (("a+b",), "a b", None),
        (("look", "look (closely)"), "look (closely) for it", None),
        (("look", "look (closely)"), "look (closely). Now.", "look (closely)"),
        (("look", "look (closely)"), "look (closley)", None),
        (("look",), "look (closely)", "look"),
        (("look",), "look (closely) and go", None),
        (("talk to Mr. X",), "talk to mr. x. He knows.", "talk to Mr. X"),
        (("go to ball-1",), "Go to ball 1", "go to ball-1"),
        (("कि",), "की", None),
        (("straße",), "STRASSE", "straße"),
        (("...", "!"), "...", "..."),
        (("!",), "?", None),
        (("x\ny",), "x y", "x\ny"),
        (("open door", "open door "), "open door", "open door"),
    ],
)
def test_wording_is_forgiven_and_never_bent_to_another_action(admissible, written, found):
    made = parse(f"Action: {written}", "react", admissible)
    assert made.action == (written if found is None else found)
    assert made.problem == ("not admissible" if found is None else OK)


@pytest.mark.parametrize(
    ("reply", "admissible", "problem", "action"),
    [
        ("turn left", MOVES, OK, "turn left"),
        ("- Turn left.", MOVES, OK, "turn left"),
        ("Action: turn left", MOVES, OK, "turn left"),
        ("Thought: why\nAction: turn left", MOVES, OK, "turn left"),
        ("The door is left.\n\nturn left", MOVES, OK, "turn left"),
        ("Do this:\n```\nturn left\n```\nThat is it.", MOVES, OK, "turn left"),
        ("turn left\ngo forward", MOVES, OK, "turn left"),
        ("You can\nturn left\nor\ndrop", MOVES, "not admissible", "You can"),
        ("open the door\nand look", (), OK, "open the door"),
        ("```sql\nSELECT 1\nFROM t\n```", (), OK, "SELECT 1\nFROM t"),
        ("My answer:\n```sql\nSELECT 1\n```", (), OK, "SELECT 1"),
        ("`look`", (), OK, "look"),
        ('say "a" or "b"', (), OK, 'say "a" or "b"'),
        ('"a" or "b"', (), OK, '"a" or "b"'),
        ("<|endoftext|>", (), OK, "<|endoftext|>"),
        ("```\n```", (), "no action", None),
    ],
)
def test_a_plain_action_needs_no_heading_and_has_no_thought(reply, admissible, problem, action):
    assert parse(reply, "action", admissible) == Parsed(None, action, problem)


def test_without_a_list_any_action_counts_as_it_is_written():
    assert parse("Thought: a\nAction: put -1 in 'x'. now", "react").action == "put -1 in 'x'. now"
    assert parse("Action: a\n\nb", "react") == Parsed(None, "a", OK)
    assert parse("**Action: a**", "react").action == "a"
    assert parse("Action: abc", "react", longest=2) == Parsed(None, None, "too long")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
pieces = st.lists(
    st.sampled_from(["Thought:", "Action:", "Observation:", "\n", "```", "**", '"', "`", " ", "turn left", "- ", ". "])
    | words,
    max_size=12,
).map("".join)


@settings(deadline=None)
@given(pieces, st.sampled_from(["react", "action"]), st.lists(words, max_size=5) | st.just(list(MOVES)))
@example("Action: \ud800", "react", ["\ud800"])
@example("```" * 5000, "action", [])
@example("Action: ", "react", [" ", ""])
@example("`'\"" * 30000, "action", ["a"])
@example(". a" * 300, "action", ["a"])
@example("Action:" * 10000, "react", ["a"])
@example("`" * 900, "action", [])
def test_it_never_raises_and_an_action_is_always_one_that_was_offered(reply, style, admissible):
    made = parse(reply, style, admissible)
    if made.problem == OK:
        assert made.action and (not admissible or made.action in admissible)
    elif made.problem != "not admissible":
        assert made.action is None
    if style == "action":
        assert made.thought is None


plain = st.text(st.characters(categories=["L", "N"], include_characters=" ,.'-"), min_size=1, max_size=60)


@settings(deadline=None)
@given(st.none() | plain, plain.map(str.strip).filter(lambda a: a and not a.startswith(("'", "- "))))
def test_what_is_written_is_read_back(thought, action):
    made = parse(compose(thought, action), "react", [action, action + " x"])
    assert made == Parsed(None if thought is None else thought.strip(), action, OK)
    assert parse(action, "action", [action]).action == action
    assert parse(compose(thought, action), "react").action == action


@given(st.sampled_from(MOVES), st.data())
def test_case_space_and_punctuation_do_not_matter(action, data):
    change = data.draw(st.sampled_from([str.upper, str.title, lambda a: a.replace(" ", "  "), lambda a: f"'{a}'!"]))
    assert parse(f"Action: {change(action)}", "react", MOVES).action == action


def test_outcomes_are_counted():
    tally = Tally()
    for reply in ("Action: drop", "Action: drop", "x", ""):
        tally.note(parse(reply, "react", MOVES))
    assert tally.describe() == {"ok": 2, "no action": 1, "not admissible": 0, "empty": 1, "too long": 0}
    assert pickle.loads(pickle.dumps(tally)) == tally
