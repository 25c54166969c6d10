"""The oracle without a model: what answers are taken, what a prompt holds, how long trajectories fall into windows."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle_script import EVERY_STEP, INJECTIONS, LINE, RECORD, goal, mark, trajectory

from atlas_ray.selection import oracle_prompt
from atlas_ray.selection.oracle_answer import (
    LONGEST_REASON,
    Limits,
    RefusedError,
    SubGoal,
    answer_schema,
    read_answer,
)
from atlas_ray.selection.oracle_prompt import (
    part_prompt,
    plan_prompt,
    prompt_sha256,
    reprompt,
    sanitize,
    step_lines,
    whole_prompt,
)
from atlas_ray.selection.oracle_task import CATEGORIES, CRITICAL
from atlas_ray.trajectory import Step

WHOLE = Limits(0, 5, plan=True, most=2, least=1)
PLAN = [goal(0, 2), goal(3, 5)]


def answer(critical=(mark(1),), plan=PLAN, **more):
    return json.dumps({"plan": plan, "critical": list(critical), **more})


def refused(text, limits=WHOLE, **kwargs):
    with pytest.raises(RefusedError) as caught:
        read_answer(text, limits, **kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return caught.value.kind


@pytest.mark.parametrize(
    "wrap",
    [
        "{}",
        " \n{}\n\n",
        "```json\n{}\n```",
        "```\n{}\n```",
        "```JSON\r\n{}\r\n```",
        "~~~json\n{}\n~~~",
        "\ufeff{}",
        "{}<|im_end|>",
        "{}</s>\n",
        "```json\n{}\n```<|eot_id|>",
        '<think>\n{"critical": []}\n</think>\n{}',
        "step 1, I think\n</think>\n\n{}",
        "[THINK]a[/THINK]\n```json\n{}\n```",
    ],
)
def test_a_valid_answer_is_read_in_the_order_of_the_steps(wrap):
    text = answer([mark(4, "self correction", " two\n  lines "), mark(1)])
    before, _, after = wrap.rpartition("{}")
    found = read_answer(before + text + after, WHOLE)
    assert found.plan == (SubGoal("get there", 0, 2), SubGoal("get there", 3, 5))
    assert [(m.index, m.category, m.reason) for m in found.critical_steps] == [
        (1, "critical action", "It would have failed."),
        (4, "self correction", "two lines"),
    ]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("x" * 200_000, "too long"),
        ("Sure! " + answer(), "not JSON"),
        (answer() + " I hope this helps.", "not JSON"),
        ("Here:\n```json\n" + answer() + "\n```", "not JSON"),
        (answer()[:-10], "not JSON"),
        (answer() + answer(), "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"plan": ' + "9" * 9000 + "}", "not JSON"),
        (answer().replace('"step": 1', '"step": NaN'), "not JSON"),
        (answer().replace('"step": 1', '"step": -Infinity'), "not JSON"),
        (answer()[:-1] + ', "critical": []}', "wrong form"),
        (answer().replace('"step": 1', '"step": 1, "step": 2'), "wrong form"),
        ("null", "wrong form"),
        ("[0, 1]", "wrong form"),
        (json.dumps([json.loads(answer())]), "wrong form"),
        (json.dumps({"answer": json.loads(answer())}), "wrong form"),
        (json.dumps({"critical": [mark(1)]}), "wrong form"),
        (answer(notes="x"), "wrong form"),
        (json.dumps({"plan": PLAN, "critical": {"0": mark(1)}}), "wrong form"),
        (answer([1, 2]), "wrong form"),
        (answer([mark("1")]), "wrong form"),
        (answer([mark(1.0)]), "wrong form"),
        (answer([mark(True)]), "wrong form"),
        (answer([mark(None)]), "wrong form"),
        (answer([mark([1])]), "wrong form"),
        (answer([mark(1) | {"sure": 1}]), "wrong form"),
        (answer([mark(1, reason=["a"])]), "wrong form"),
        (answer([mark(-1)]), "no such step"),
        (answer([mark(6)]), "no such step"),
        (answer([mark(10**400)]), "no such step"),
        (answer([mark(1), mark(1)]), "repeated step"),
        (answer([mark(1), mark(2), mark(3)]), "too many"),
        (EVERY_STEP, "too many"),
        (answer([mark(1)] * 900), "too many"),
        (answer([mark(1, "important")]), "unknown category"),
        (answer([mark(1, "Critical Action")]), "unknown category"),
        (answer([mark(1, ["critical action"])]), "unknown category"),
        (answer([mark(1, reason="")]), "bad text"),
        (answer([mark(1, reason=" \n")]), "bad text"),
        (answer([mark(1, reason="x" * (LONGEST_REASON + 1))]), "bad text"),
        (answer([mark(1, reason="a\x1b[2Jb")]), "bad text"),
        (answer([mark(1, reason="a\ud800")]), "bad text"),
        (answer(plan=[goal(0, 5, "a\u202eb")]), "bad text"),
        (answer(plan=[]), "bad plan"),
        (answer(plan=[goal(0, 2)]), "bad plan"),
        (answer(plan=[goal(1, 5)]), "bad plan"),
        (answer(plan=[goal(0, 2), goal(4, 5)]), "bad plan"),
        (answer(plan=[goal(0, 3), goal(3, 5)]), "bad plan"),
        (answer(plan=[goal(3, 5), goal(0, 2)]), "bad plan"),
        (answer(plan=[goal(0, 6)]), "bad plan"),
        (answer(plan=[goal(0, -1), goal(0, 5)]), "bad plan"),
        (answer(plan=[goal(i, i) for i in range(6)] * 2), "bad plan"),
        (answer([]), "nothing marked"),
    ],
)
def test_anything_else_is_refused_whole(text, kind):
    assert refused(text) == kind


def test_thinking_is_no_answer_and_an_answer_may_speak_of_it():
    assert refused("<think>" + answer()) == "empty"
    assert refused("<ponder>" + answer() + "</ponder>" + answer()) == "not JSON"
    assert read_answer("<ponder>so</ponder>" + answer(), WHOLE, thinking=("<ponder>",)) == read_answer(answer(), WHOLE)
    assert read_answer(answer([mark(1, reason="It ends with </think> in <b>")]), WHOLE).critical_steps[0].index == 1


def test_an_answer_that_broke_off_is_told_so_and_one_that_ended_in_time_is_taken():
    assert refused(answer()[:-10], cut=True) == refused("", cut=True) == "cut off"
    assert refused(EVERY_STEP, cut=True) == "too many"
    assert read_answer(answer(), WHOLE, cut=True) == read_answer(answer(), WHOLE)


def test_a_window_is_marked_by_the_numbers_of_the_whole_and_may_have_no_mark():
    limits = Limits(10, 14, plan=False, most=1)
    assert [m.index for m in read_answer(json.dumps({"critical": [mark(12)]}), limits).critical_steps] == [12]
    assert read_answer('{"critical": []}', limits).critical_steps == ()
    assert refused(json.dumps({"critical": [mark(2)]}), limits) == "no such step"
    assert refused(answer(), limits) == "wrong form"
    many = json.dumps({"plan": [goal(i, i) for i in range(9)]})
    assert refused(many, Limits(0, 8, plan=True, most=0)) == "bad plan"
    planned = read_answer(json.dumps({"plan": [goal(10, 14)]}), Limits(10, 14, plan=True, most=0))
    assert (planned.plan[0].first, planned.critical_steps) == (10, ())


_LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 8), st.floats(), st.sampled_from(CATEGORIES), st.text(max_size=4)
)
_MARK = st.fixed_dictionaries(
    {
        "step": st.integers(-1, 7) | _LEAF,
        "category": st.sampled_from(CATEGORIES) | _LEAF,
        "reason": st.just("r") | _LEAF,
    }
)
_GOAL = st.fixed_dictionaries({"goal": st.just("g"), "first": st.integers(-1, 6) | _LEAF, "last": st.integers(-1, 7)})
_ANSWERS = st.fixed_dictionaries(
    {"plan": st.just([goal(0, 5)]) | st.lists(_GOAL, max_size=4), "critical": st.lists(_MARK, max_size=4) | _LEAF}
)


@settings(max_examples=100, deadline=None)
@given(
    _ANSWERS.map(json.dumps)
    | st.text()
    | st.tuples(_ANSWERS.map(json.dumps), st.integers(0, 90)).map(lambda x: x[0][: x[1]])
)
def test_what_is_taken_keeps_every_limit_and_nothing_else_escapes(text):
    try:
        found = read_answer(text, WHOLE)
    except RefusedError:
        return
    steps = [m.index for m in found.critical_steps]
    assert 1 <= len(steps) <= 2 and steps == sorted(set(steps)) and set(steps) <= set(range(6))
    assert all(m.category in CATEGORIES and m.reason.isprintable() for m in found.critical_steps)
    assert [i for g in found.plan for i in range(g.first, g.last + 1)] == list(range(6))


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_of_a_trajectory_passes_for_more_than_data(text):
    clean, dirty = trajectory(4), trajectory(4)
    step = Step(observation=text, thought=text, action=text)
    dirty = dirty.model_copy(update={"instruction": text, "steps": (dirty.steps[0], step, *dirty.steps[2:])})
    plan = [SubGoal(text, 0, 3)]
    prompts = (
        (whole_prompt(t, 2), plan_prompt(t, range(1, 3), plan), part_prompt(t, range(1, 3), plan, 1))
        for t in (clean, dirty)
    )
    for before, prompt in zip(*prompts, strict=True):
        word = prompt.word()
        system, user = prompt.messages(word)
        assert system == before.messages(word)[0], "the system message never changes"
        assert [m["role"] for m in (system, user)] == ["system", "user"]
        (found,) = RECORD.finditer(user["content"])
        head, body, task = user["content"][: found.start()], found[2], user["content"][found.end() :]
        assert user["content"].count(word) == 2
        outside = before.messages(word)[1]["content"]
        inside = RECORD.search(outside)
        assert (head, task) == (outside[: inside.start()], outside[inside.end() :])
        lines = body.split("\n")
        assert lines == body.splitlines(), "nobody sees other lines than we do"
        assert all(LINE.fullmatch(line) for line in lines)
        assert [line for line in lines if line.startswith("step")] == [
            f"step {i}" for i in range(prompt.limits.first, prompt.limits.last + 1)
        ]
        assert body.replace("\n", "").isprintable()
        for token in ("<|", "</s>", "<s>", "[INST]", "<｜", "<start_of_turn>", "<eos>"):
            assert token not in body


def test_ordinary_text_is_shown_as_it_is():
    for text in (
        "a < b, x<5, <= 3 <- é 你好 {1}",
        "[0, 1] [Back to Search] list[3]",
        "- \tgo to the 'red' ball;\n\nYou see",
    ):
        assert sanitize(text) == text
    (step,) = trajectory(1, observation="a\r\nb\u2028\nc", thought="").steps
    assert step_lines(0, step) == "step 0\no| a\no| b\no| \no| c 0\nt|  0\na| act 0\n"
    assert step_lines(3, Step(observation="", action="")) == "step 3\no| \na| \n"
    assert sanitize("a\u00a0b") == "a b"
    assert sanitize("\ud800") == "\ufffd"


def test_the_word_is_new_each_time_not_in_the_record_and_not_in_the_key(monkeypatch):
    prompt = whole_prompt(trajectory(), 4)
    assert prompt.word() != prompt.word()
    drawn = iter(["think", "act", "fresh"])
    monkeypatch.setattr(oracle_prompt.secrets, "token_hex", lambda _: next(drawn))
    assert prompt.word() == "fresh"
    assert prompt.messages("a") != prompt.messages("b")
    assert prompt.key("m", 0.0) == whole_prompt(trajectory(id="other", env="F"), 4).key("m", 0)
    keys = [
        prompt.key("m", 0.0),
        prompt.key("m", None),
        prompt.key("m", 0.5),
        prompt.key("n", 0.0),
        whole_prompt(trajectory(), 3).key("m", 0.0),
        whole_prompt(trajectory(observation="p"), 4).key("m", 0.0),
        part_prompt(trajectory(), range(12), [], 4).key("m", 0.0),
        part_prompt(trajectory(), range(6), [], 4).key("m", 0.0),
    ]
    assert len(set(keys)) == len(keys)


def test_the_prompt_has_a_version(monkeypatch):
    before = prompt_sha256()
    assert before == prompt_sha256() and len(before) == 64
    for name in ("system", "head", "brief", "plan", "marks", "some", "none"):
        assert prompt_sha256(replace(CRITICAL, **{name: getattr(CRITICAL, name) + " Please."})) != before, name
    for name in ("_OPEN", "AGAIN"):
        with monkeypatch.context() as patch:
            patch.setattr(oracle_prompt, name, getattr(oracle_prompt, name) + " Please.")
            assert prompt_sha256() != before, name


def test_a_complaint_shows_the_model_its_words_but_not_at_any_length():
    said, told = reprompt("no<|im_end|>" + "x" * 1000, "it is bad")
    assert said["role"] == "assistant" and len(said["content"]) < 500 and "left out" in said["content"]
    assert "<|" not in said["content"]
    assert told["role"] == "user" and "it is bad" in told["content"]
    assert reprompt(" ", "it is empty")[0]["content"]


def test_the_schema_uses_only_what_strict_servers_know():
    text = json.dumps(answer_schema(WHOLE))
    assert not any(word in text for word in ("minItems", "maxItems", "minimum", "maximum", "maxLength"))
    assert list(answer_schema(WHOLE)["properties"]) == ["plan", "critical"]
    assert list(answer_schema(Limits(0, 5, plan=False, most=1))["properties"]) == ["critical"]
    assert list(answer_schema(Limits(0, 5, plan=True, most=0))["properties"]) == ["plan"]
