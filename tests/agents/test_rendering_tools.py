"""Tool calls in chat templates: what is trained is what the template writes for the agent, and nothing else."""

import logging

import pytest
from tool_records import BASH, LOOK, drawn
from tool_tokenizers import FAMILIES, TEMPLATES, tokenizer_of

from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rendering_chat import ChatRenderer, make_renderer
from atlas_ray.agents.unknown_words import Unknown, survey
from atlas_ray.data.records import PART_GAP, Part, Step, Trajectory
from atlas_ray.data.tool_calls import ToolCall, calls_of, write_calls
from atlas_ray.errors import InputError
from atlas_ray.finetune.data import Examples
from atlas_ray.finetune.store import build_store
from atlas_ray.trajectory import Annotation

DAY = "26 Jul 2024"
RENDERERS = {family: ChatRenderer(tokenizer_of(family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def episode(*steps, tools=(BASH, LOOK), instruction="You can call tools.", name="t"):
    return Trajectory(
        id=name,
        env="e",
        task="t",
        seed=0,
        instruction=instruction,
        steps=steps,
        score=None,
        success=None,
        source="s",
        tools=tools,
    )


def answered(*results, **more):
    parts = tuple(Part(role="tool", id=key, length=len(text)) for key, text in results)
    return {"observation": PART_GAP.join(text for _, text in results), "parts": parts, **more}


LS = write_calls([ToolCall("bash", {"command": "ls\n<a> \"b\" 'c' \u00e9"}, "c1")])
CAT = write_calls([ToolCall("bash", {"command": "cat a.py", "n": [1, None, True]}, "c2")])
STEPS = (
    Step(observation="Which files\nare there? ", action=LS, thought="I look."),
    Step(**answered(("c1", "a.py\n\nb.py")), action=CAT),
    Step(**answered(("c2", '{"x": 1}')), action="One: a.py."),
    Step(observation="And now?", action="None."),
)
PARALLEL = (
    Step(observation="Both!", action=write_calls([ToolCall("bash", {}, "c1"), ToolCall("look_up", {"q": "x"}, "c2")])),
    Step(**answered(("c1", "one"), ("c2", "two")), action="Done."),
)
BASH_LS = '{"command": "ls\\n<a> \\"b\\" \'c\' \u00e9"}'
CALLED = f'<tool_call>\n{{"name": "bash", "arguments": {BASH_LS}}}\n</tool_call>'
CATTED = '<tool_call>\n{"name": "bash", "arguments": {"command": "cat a.py", "n": [1, null, true]}}\n</tool_call>'
ANSWERS = {
    "qwen2.5": [f"I look.\n{CALLED}", CATTED],
    "qwen3": [f"I look.\n{CALLED}", CATTED],
    "hermes": [CALLED, CATTED],
    "llama-3.1": [
        f'{{"name": "bash", "parameters": {BASH_LS}}}',
        '{"name": "bash", "parameters": {"command": "cat a.py", "n": [1, null, true]}}',
    ],
}


def messages_of(steps, instruction="You can call tools."):
    """The messages of an episode, as anybody would send them, and where the agent's are."""
    messages = [{"role": "system", "content": instruction}] if instruction else []
    turns = []
    for step in steps:
        for part, text in step.seen():
            messages.append({"role": part.role, "content": text})
        turns.append(len(messages))
        calls = [
            {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": c.arguments}}
            for c in calls_of(step.action) or ()
        ]
        if calls:
            messages.append({"role": "assistant", "content": step.thought or "", "tool_calls": calls})
        else:
            said = "\n\n".join(filter(None, (step.thought, step.action)))
            messages.append({"role": "assistant", "content": said})
    return messages, turns


def shown(tokenizer, messages, tools=(BASH, LOOK), **settings):
    return tokenizer.apply_chat_template(
        messages, tools=list(tools) or None, tokenize=False, date_string=DAY, **settings
    )


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


MORE = {"role": "user", "content": "more?"}


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_trained_spans_are_what_the_template_writes_for_the_agent(family, count):
    renderer, end = RENDERERS[family], FAMILIES[family][2]
    rendered = renderer.render(episode(*STEPS[:count]))
    answers = [*ANSWERS[family], "One: a.py.", "None."][:count]
    assert [decoded(renderer.tokenizer, rendered.ids[a:b]) for a, b in rendered.spans] == [f"{a}{end}" for a in answers]
    assert all(rendered.ids[b - 1] == renderer.tokenizer.convert_tokens_to_ids(end) for _, b in rendered.spans)
    assert rendered.spans[-1][1] == len(rendered.ids)


def test_every_prompt_is_what_the_template_asks_with_and_a_prefix_of_what_is_trained(family):
    renderer = RENDERERS[family]
    rendered, (messages, turns) = renderer.render(episode(*STEPS)), messages_of(STEPS)
    for turn, (start, _) in zip(turns, rendered.spans, strict=True):
        asked = shown(renderer.tokenizer, messages[:turn], add_generation_prompt=True)
        assert decoded(renderer.tokenizer, rendered.ids[:start]) == asked


def test_the_ids_are_those_of_the_whole_conversation(family):
    renderer, end = RENDERERS[family], FAMILIES[family][2]
    whole = shown(renderer.tokenizer, [*messages_of(STEPS)[0], MORE]).rsplit(end, 2)[0] + end
    ids = renderer.render(episode(*STEPS)).ids
    assert ids == renderer.tokenizer(whole, add_special_tokens=False)["input_ids"]
    # tokens that the template alone writes, and tokens of the calls
    call = renderer.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert ids.count(call) == whole.count("<tool_call>") and (family == "llama-3.1") == (call not in ids)


def test_the_tokens_before_an_action_are_its_thought_and_no_more(family):
    tokenizer, renderer = tokenizer_of(family), RENDERERS[family]
    said = Step(observation="Why?", thought="So </tool_call> <|im_end|> it\nis.", action="Because.")
    item = episode(*STEPS[:2], Step(**answered(("c2", "x")), thought=" odd  ", action=LS), said)
    rendered, lengths = renderer.render(item), renderer.tools.thought_lengths(item)
    parts = [
        (decoded(tokenizer, rendered.ids[start : start + n]), decoded(tokenizer, rendered.ids[start + n : end - 1]))
        for (start, end), n in zip(rendered.spans, lengths, strict=True)
    ]
    beside = not renderer.tools.drops_thoughts
    assert [before.split() for before, _ in parts] == [
        ["I", "look."] if beside else [],
        [],
        ["odd"] if beside else [],
        said.thought.split(),
    ]
    first, second = (answer.removeprefix("I look.\n") for answer in ANSWERS[family])
    assert [action for _, action in parts] == [first, second, first, "Because."]


def test_parallel_calls_are_one_turn(family):
    renderer = RENDERERS[family]
    if family == "llama-3.1":
        with pytest.raises(InputError, match=r"trajectory 't': .* refuses it \(one call a turn\)"):
            renderer.render(episode(*PARALLEL))
        return
    rendered = renderer.render(episode(*PARALLEL))
    (start, end), (later, _) = rendered.spans
    call = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'.format
    said = "\n".join([call("bash", "{}"), call("look_up", '{"q": "x"}')])
    assert decoded(renderer.tokenizer, rendered.ids[start:end]) == f"{said}<|im_end|>"
    seen = decoded(renderer.tokenizer, rendered.ids[end:later])
    assert seen.index("one") < seen.index("two") and "tool_call>" not in seen


def without_specials(value):
    """The same without special tokens."""
    if isinstance(value, str):
        return value.replace("<|im_", "<!im_").replace("<|eot", "<!eot")
    if isinstance(value, dict):
        return {without_specials(k): without_specials(v) for k, v in value.items()}
    return [without_specials(v) for v in value] if isinstance(value, list | tuple) else value


def test_any_conversation_is_written_as_the_template_does_and_special_tokens_in_it_stay_text(family):
    renderer, end = RENDERERS[family], FAMILIES[family][2]
    special, with_specials = set(renderer.tokenizer.all_special_ids) | renderer.special, 0
    for item in (drawn(seed) for seed in range(10)):
        plain = Trajectory.model_validate(without_specials(item.row()))
        single = all(len(calls_of(s.action) or ()) < 2 for s in item.steps)
        if not all(s.action for s in item.steps) or (family == "llama-3.1" and not single):
            continue
        one, other = renderer.render(item), renderer.render(plain)
        assert [i for i in one.ids if i in special] == [i for i in other.ids if i in special]
        texts = [[decoded(renderer.tokenizer, r.ids[a:b]) for a, b in r.spans] for r in (one, other)]
        assert without_specials([t.removesuffix(end) for t in texts[0]]) == [t.removesuffix(end) for t in texts[1]]
        with_specials += item != plain
        messages, turns = messages_of(plain.steps, plain.instruction)
        for n, (start, stop) in zip(turns, other.spans, strict=True):
            asked = shown(renderer.tokenizer, messages[:n], plain.tools, add_generation_prompt=True)
            assert decoded(renderer.tokenizer, other.ids[:start]) == asked
            told = shown(renderer.tokenizer, [*messages[: n + 1], MORE], plain.tools)
            assert told.startswith(asked)
            written = told[len(asked) :].split(end)[0] + end
            assert decoded(renderer.tokenizer, other.ids[start:stop]) == written
    assert with_specials > 0


def test_thoughts_that_a_template_leaves_out_are_said_once(caplog, family):
    renderer = ChatRenderer(tokenizer_of(family))
    assert renderer.tools.drops_thoughts == (family in ("hermes", "llama-3.1"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            renderer.render(episode(*STEPS))
    assert len(caplog.records) == renderer.tools.drops_thoughts


def test_a_turn_may_end_otherwise_after_a_call():
    template = (TEMPLATES / "tools-llama-3.1.jinja").read_text()
    template = template.replace(
        '{{- "<|eot_id|>" -}}\n    {%- elif message.role == "tool"',
        '{{- "<|eom_id|>" -}}\n    {%- elif message.role == "tool"',
    )
    renderer = ChatRenderer(tokenizer_of("llama-3.1", template))
    rendered = renderer.render(episode(*STEPS))
    ends = [decoded(renderer.tokenizer, rendered.ids[b - 1 : b]) for _, b in rendered.spans]
    assert ends == ["<|eom_id|>", "<|eom_id|>", "<|eot_id|>", "<|eot_id|>"]


QWEN = (TEMPLATES / "tools-qwen2.5.jinja").read_text()


LOSING = {  # what is replaced, by what, and why the template is refused then
    "arguments": ("(f.arguments | tojson)", "'{}'", "leaves out the arguments of a call"),
    "results": ('<tool_response>\\n" + message.content', '<tool_response>\\n"', "leaves out the result of a tool"),
    "late tools": ("if tools -%}", "if tools and messages | length > 4 -%}", "not append-only"),
    "no tools": ("if tools -%}", "if tools -%}{{- raise_exception('no tools') -}}", r"refuses it \(no tools\)"),
    "other beginnings": (
        '{{- "<|im_start|>assistant" -}}',
        '{{- "<|im_start|>assistant" + ("!" if message.tool_calls else "") -}}',
        "begins a turn of the agent otherwise",
    ),
    "no end of a call": (
        '{{- "<|im_end|>\\n" -}}\n    {%- elif message.role == "tool"',
        '{%- if not message.tool_calls -%}{{- "<|im_end|>\\n" -}}{%- endif -%}\n    {%- elif message.role == "tool"',
        "no special token",
    ),
}


@pytest.mark.parametrize("which", [*LOSING, "knows no tools"])
def test_templates_that_lose_calls_are_refused(which):
    old, new, why = LOSING.get(which, ("", "", "leaves out which tool is called"))
    template = QWEN.replace(old, new, 1) if old else (TEMPLATES / "smollm2.jinja").read_text()
    assert template != QWEN
    renderer = ChatRenderer(tokenizer_of("qwen2.5", template))
    with pytest.raises(InputError, match=why) as caught:
        renderer.render(episode(*STEPS))
    assert caught.value.field == "prompt"


def test_a_plain_prompt_has_no_form_for_calls():
    with pytest.raises(InputError, match="trajectory 't' calls tools.*prompt = \"chat\"") as caught:
        make_renderer(tokenizer_of("qwen2.5"), prompt="plain").render(episode(*STEPS))
    assert caught.value.field == "prompt"
    assert isinstance(make_renderer(tokenizer_of("qwen2.5")), Renderer)


def test_masks_hold_the_critical_turns_alone(tmp_path):
    renderer = RENDERERS["qwen2.5"]
    item = episode(*STEPS)
    rendered = renderer.render(item)
    store = build_store(tmp_path / "store", [item], renderer, 4096, "error", "key")
    mark = Annotation(trajectory_id="t", selector="s", fraction=0.5, critical=(0, 2))
    (example,) = Examples(store, [mark])
    spans = [rendered.spans[0], rendered.spans[2]]
    assert example.trained == [n for a, b in spans for n in range(a, b)]
    assert list(example.ids) == rendered.ids[: spans[-1][1]]
    text = decoded(renderer.tokenizer, [example.ids[n] for n in example.trained])
    assert text == f"{ANSWERS['qwen2.5'][0]}<|im_end|>One: a.py.<|im_end|>"
    # whole steps go where it is too long
    short = build_store(tmp_path / "short", [item], renderer, rendered.spans[1][1] + 3, "drop_last_steps", "key")
    assert short.spans(0) == rendered.spans[:2]


def test_words_that_a_tokenizer_does_not_know_are_counted():
    renderer = RENDERERS["qwen2.5"]
    counts = survey(renderer, [episode(*STEPS)], Unknown(renderer.tokenizer))
    assert counts.unknown == 0
