"""What replies say, and what they do not: a reply never becomes an action that it does not name."""

import pickle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from atlas_ray.data.exchange.turns import compose
from atlas_ray.data.parsing import LONGEST_REPLY, Parsed, Tally, parse
from atlas_ray.data.thinking import tag_pair

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
        ("Action:\n1. turn left", None, "turn left"),
        (
            "<thought>\nAction: drop\nObservation: a pit\n</thought>\nAction: turn left",
            "Action: drop\nObservation: a pit",
            "turn left",
        ),
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
        ("<|endoftext|>", (), "empty", None),
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


@pytest.mark.parametrize(
    "reply",
    [
        "### Thought\na\n### Action\nopen box",
        "**Thought**\na\n\n**Action**\nopen box",
        "*Thought:* a\n*Action:* open box",
        "`Thought:` a\n`Action: open box`",
        "__Thought: a__\n__Action: open box__",
        "1. Thought: a\n2) Action: open box",
        "> Thought: a\n> Action: open box",
        "Thought 1: a\nAction 1: open box",
        "Thought[12]: a\nAction #12: open box",
        "THOUGHT: a\nACTION: open box",
        "Think: a\nAct: open box",
        "Reasoning: a\nNext action: open box",
        "Thought: a\nFinal Action: open box",
        "\ufeffThought: a\n\u00a0Action: open box",
        "Thought: a\u2028Action: open box",
        "Thought: Thought: a\nAction: Action: open box",
        "Thought: a Action: open box\nAction: open box",
        "Thought: a\nAction: `open box`",
        "Thought: a\nAction:\n~~~\nopen box\n~~~",
        "Thought: a\nAction: open box\n\nI hope that it is not locked.",
        "Thought: a\nAction: open box\nThought: it may be in there",
        "Thought: a\nAction: open box\nAction Input: none",
        "<thought>a</thought>\n<action>open box</action>",
        "<thought>a</thought>\nAction: open box",
        "<Reasoning>a</Reasoning>\n**Action:** open box",
        "- **Thought:** a\n- **Action:** **open box**",
        "## Thought:\na\n## Action:\nopen box",
        "**Thought:**\n\na\n\n**Action:**\n\nopen box",
        "Thought : a\nAction : *open box*",
        "** Thought: ** a\n** Action: ** open box",
        "### THOUGHT ###\na\n### ACTION ###\nopen box",
        "**Thought 3:** a\n**Action 3:** open box",
        "<|im_start|>assistant\nThought: a\nAction: open box<|im_end|>",
        "Thought: a\nAction: open box</s></s>",
        "Thought: a\nAction: open box<|eot_id|>\n",
        "Thought: a\nAction: open box <\uff5cend\u2581of\u2581sentence\uff5c>",
        "Thought: a\nAction: open box<end_of_turn>",
        "<think>\nAction: close box\nObservation: shut\n</think>\n\nThought: a\nAction: open box",
        "Action: close box\n</think>\nThought: a\nAction: open box",
        "[THINK]Action: close box[/THINK]Thought: a\nAction: open box",
        "<think>b</think><think>c</think>Thought: a\nAction: open box</think>",
        "<|channel|>analysis<|message|>Action: close box<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Thought: a\nAction: open box",
    ],
)
def test_headings_of_all_kinds_are_read_the_same_with_and_without_a_list(reply):
    for admissible in ((), ("open box", "close box")):
        assert parse(reply, "react", admissible) == Parsed("a", "open box", OK)


@pytest.mark.parametrize(
    ("reply", "thought", "action"),
    [
        ("Thought: a\nAction: open\nObservation: a key.\nThought: b\nAction: take key", "a", "open"),
        ("Thought 1: a\nAction 1: open\nObservation 1: a key.\nAction 2: take key", "a", "open"),
        ("Thought: a\nAction: open\n**Observation:** a key.", "a", "open"),
        ("Thought: a\nAction: open\nObs: a key.", "a", "open"),
        ("Thought: a\nAction: open\nHuman: a key.\nAction: take key", "a", "open"),
        ("Thought: a\nAction: open<|im_end|>\n<|im_start|>user\nA key.", "a", "open"),
        ("open\nObservation: a key.", None, "open"),
    ],
)
def test_a_reply_ends_where_an_observation_is_invented(reply, thought, action):
    made = parse(reply, "react", ("open", "take key"))
    assert made == Parsed(thought, action, OK)
    assert made.invented
    assert not parse("Thought: a\nObservation: none\nAction: open").invented


@pytest.mark.parametrize(
    ("reply", "reasoning", "problem"),
    [
        ("<think>\nperhaps\nAction: open\nno, wait", "perhaps\nAction: open\nno, wait", "empty"),
        ("perhaps\nAction: open</think>", "perhaps\nAction: open", "empty"),
        ("<think>\n\n</think>\n\nAction: open", None, OK),
        ("<THINK>a</THINK>Action: open", "a", OK),
        ("<think>a</think>open", "a", OK),
        (f"<think>{'a ' * LONGEST_REPLY}</think>Action: open", ("a " * LONGEST_REPLY).strip(), OK),
    ],
)
def test_what_is_thought_before_is_no_part_of_the_answer(reply, reasoning, problem):
    made = parse(reply, "react", ("open",))
    assert (made.reasoning, made.problem, made.thought) == (reasoning, problem, None)


def test_other_tags_of_thinking_can_be_named():
    reply = "<ponder>Action: close</ponder>Action: open"
    assert parse(reply, thinking=("<ponder>",)).reasoning == "Action: close"
    assert parse("{Action: close}Action: open", thinking=("{ }",)).action == "open"
    assert parse("<think>a</think>\nAction: open", thinking=()).thought == "<think>a</think>"
    for wrong in ("think", "", "a b c", "</think>", "<|A|>"):
        with pytest.raises(ValueError, match="opening tag"):
            tag_pair(wrong)


@pytest.mark.parametrize(
    ("reply", "action"),
    [
        ('Action: search\nAction Input: {"q": "Action: none"}', 'search {"q": "Action: none"}'),
        ("Act: bash\n\n```bash\nls -l\n```", "bash\nls -l"),
        ("My next Action: is not clear, Reaction: none", None),
        ("It is a Reaction: none", None),
        ("Action:\nThought: a", None),
        ("Action: it is <|im_end|> that ends", "it is <|im_end|> that ends"),
    ],
)
def test_an_action_keeps_what_belongs_to_it_and_nothing_else(reply, action):
    assert parse(reply).action == action


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
@example("<think>" * 9000 + "</think>" * 9000, "react", ["a"])
@example("</think>" * 400_000, "react", ["a"])
@example(" " * 50000 + "Action:", "react", ["a"])
@example("*" * 50000 + "_" * 50000, "react", ["a"])
@example("</s>" * 20000 + "x", "react", ["a"])
@example("Action: x" + "</s>\n" * 20000, "react", ["a"])
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
