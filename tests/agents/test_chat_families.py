"""Chat templates of the families that people use, on tokenizers of their kinds: as those write them, or refused.

The templates are ours, after the public behaviour of each family: short, and without tools.
"""

import json
from datetime import datetime

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from atlas_ray.agents.rendering_chat import ChatRenderer
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.trajectory import Step
from tests.agents.test_rendering import trajectory

TEXT = [
    "Goal: go to the red ball\nObservation: You see a wall 2 steps left\nThought: go to it\nAction: turn left",
    "Observation: nothing here, a red door\nAction: go forward\na blue key\nThought: pick it up\nAction: pick up",
    "You are a helpful assistant. Today is the 26 July 2024. [INST] [/INST]",
]
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level():
    """As of Llama 3, Qwen, Granite: bytes, with words and signs cut apart first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(TEXT * 5, trainer)
    return core


def sentence_piece(prefix):
    """As of Mistral and Phi-3 (a space before the text), Llama 2 (before every part of it) and Gemma (none)."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    byte_tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=byte_tokens, show_progress=False)
    core.train_from_iterator([f" {text}".replace("\n", " ") for text in TEXT * 5], trainer)
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
    # the trainer takes bytes for special tokens, and they are ordinary ones
    return Tokenizer.from_str(json.dumps({**json.loads(core.to_str()), "added_tokens": []}))


CORES = {
    "bytes": byte_level(),
    "space first": sentence_piece("first"),
    "space always": sentence_piece("always"),
    "no space": sentence_piece("never"),
    "words": build_tokenizer().backend_tokenizer,
}

TURNS = "{%- for m in messages -%}"
STRICT = (
    "{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif -%}"
)
NO_SYSTEM = "{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"


def turns(user, model, ask):
    return f"{TURNS}{{%- if m.role == 'assistant' -%}}{model}{{%- else -%}}{user}{{%- endif -%}}{{%- endfor -%}}" + (
        f"{{%- if add_generation_prompt -%}}{ask}{{%- endif -%}}"
    )


GEMMA = (
    "{{ bos_token }}" + NO_SYSTEM + TURNS + STRICT + "{%- set role = 'model' if m.role == 'assistant' else m.role -%}"
    "{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
CHATML = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
GRANITE = "{{ '<|role|>' + m.role + '<|said|>' + m.content + '<|end_of_text|>\n' }}"
DATE = "{{ '<|role|>system<|said|>Today is the ' + strftime_now('%d %B %Y') + '.<|end_of_text|>\n' }}"
R1_SAID = "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|eos|>' }}"
FAMILIES = {
    # special tokens, beginning and end of sequence, and the template
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<bos>", "<eos>", GEMMA),
    "mistral": (
        ["<s>", "</s>"],
        "<s>",
        "</s>",
        "{{ bos_token }}"
        + turns("{{ '[INST] ' + m.content + ' [/INST]' }}", "{{ m.content + eos_token }}", "").replace(
            TURNS, TURNS + STRICT
        ),
    ),
    "mistral-nemo": (
        ["<s>", "</s>", "[INST]", "[/INST]"],
        "<s>",
        "</s>",
        "{{ bos_token }}" + turns("{{ '[INST]' + m.content + '[/INST]' }}", "{{ m.content | trim + eos_token }}", ""),
    ),
    "phi": (
        ["<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"],
        "<s>",
        "<|endoftext|>",
        TURNS + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- else -%}{{ eos_token }}{%- endif -%}",
    ),
    "granite": (
        ["<|end_of_text|>", "<|role|>", "<|said|>"],
        "<|end_of_text|>",
        "<|end_of_text|>",
        DATE + turns(GRANITE, GRANITE, "{{ '<|role|>assistant<|said|>' }}"),
    ),
    "bos twice": (
        ["<s>", "<|im_start|>", "<|im_end|>"],
        "<s>",
        "<|im_end|>",
        "{{ bos_token + '<s>' }}" + turns(CHATML, CHATML, "{{ '<|im_start|>assistant\n' }}"),
    ),
    "no bos": (
        ["<s>", "<|im_start|>", "<|im_end|>"],
        "<s>",
        "<|im_end|>",
        turns(CHATML, CHATML, "{{ '<|im_start|>assistant\n' }}"),
    ),
}
REFUSED = {
    # no end of a turn, an open block of thinking, a space that the prompt lacks, a turn that ends in text
    "glm": (
        ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>"],
        "<|endoftext|>",
        "[gMASK]<sop>" + TURNS + "{{ '<|' + m.role + '|>\n' + m.content }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}",
        "one and the same special token: the last turn has no end, and earlier ones run on",
    ),
    "r1-distill": (
        ["<|bos|>", "<|eos|>", "<|User|>", "<|Assistant|>"],
        "<|eos|>",
        "<|bos|>" + turns("{{ '<|User|>' + m.content }}", R1_SAID, "{{ '<|Assistant|><think>\n' }}"),
        "prompt ends in <think>, so that an answer would begin within the model's thinking",
    ),
    "mistral-v3": (
        ["<s>", "</s>", "[INST]", "[/INST]"],
        "</s>",
        "<s>" + turns("{{ '[INST] ' + m.content + '[/INST]' }}", "{{ ' ' + m.content + eos_token }}", ""),
        "it writes ' ' before an answer that was given, and not before one that is asked for",
    ),
    "llama-2": (
        ["<s>", "</s>"],
        "</s>",
        turns("{{ '<s>[INST] ' + m.content + ' [/INST]' }}", "{{ ' ' + m.content + ' </s>' }}", ""),
        "not append-only",
    ),
    "vicuna": (
        ["<s>", "</s>"],
        "</s>",
        turns("{{ 'USER: ' + m.content + '\n' }}", "{{ 'ASSISTANT: ' + m.content + '\n' }}", "{{ 'ASSISTANT: ' }}"),
        "one and the same special token",
    ),
    "needs a system message": (
        ["<s>", "</s>"],
        "</s>",
        "{%- if messages[0].role != 'system' -%}{{ raise_exception('begin with system') }}{%- endif -%}",
        r"refuses messages of user and assistant alone \(begin with system\)",
    ),
}


def tokenizer_of(kind, specials, begin, end, template):
    core = Tokenizer.from_str(CORES[kind].to_str())
    strip = any(token == "<|end|>" for token in specials)  # Phi-3's swallow the white space behind them
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>" if kind != "bytes" else None)
    made.add_tokens(
        [AddedToken(t, special=True, normalized=False, rstrip=strip) for t in specials], special_tokens=True
    )
    made.bos_token, made.eos_token, made.chat_template = begin, end, template
    if begin:  # an ordinary call writes it, and the template may write it too
        at = made.convert_tokens_to_ids(begin)
        made.backend_tokenizer.post_processor = TemplateProcessing(f"{begin} $A", None, [(begin, at)])
    return made


STEPS = [
    Step(observation="You see a wall 2 steps left", thought="go to the red ball", action="turn left"),
    Step(observation="nothing here", thought=None, action="go forward"),
    Step(observation="a red door\nYou see a blue key", thought="pick it up", action="pick up"),
]


def conversation(steps, style):
    messages = []
    for n, step in enumerate(steps):
        goal = "" if n else "Goal: go to the red ball\n"
        thought = f"Thought: {step.thought or ''}".rstrip() + "\n" if style == "react" else ""
        messages += [
            {"role": "user", "content": f"{goal}Observation: {step.observation}"},
            {"role": "assistant", "content": f"{thought}Action: {step.action}"},
        ]
    return messages


def own(tokenizer, messages, **settings):
    """What the tokenizer itself makes of a conversation, on the day that is held still."""
    day = datetime(2024, 7, 26)
    return tokenizer.apply_chat_template(messages, tokenize=False, strftime_now=day.strftime, **settings)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]


def test_the_ids_of_a_text_are_those_of_the_whole_conversation():
    tokenizer = tokenizer_of("bytes", *FAMILIES["gemma"])
    messages = conversation(STEPS, "react")
    made = tokenizer.apply_chat_template(messages, tokenize=True)
    assert list(getattr(made, "input_ids", made)) == ids_of(tokenizer, own(tokenizer, messages))
    assert tokenizer("go")["input_ids"][0] == tokenizer.bos_token_id, "an ordinary call writes another"


@pytest.mark.parametrize("style", ["react", "action"])
@pytest.mark.parametrize("kind", CORES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_s_conversation_has_the_ids_that_the_tokenizer_makes_of_the_whole(family, kind, style):
    tokenizer = tokenizer_of(kind, *FAMILIES[family])
    renderer = ChatRenderer(tokenizer, style)
    messages = conversation(STEPS, style)
    rendered = renderer.render(trajectory(STEPS))
    cue = "Thought:" if style == "react" else "Action:"
    for t, step in enumerate(STEPS):
        wanted = ids_of(tokenizer, own(tokenizer, messages[: 2 * t + 1], add_generation_prompt=True) + cue)
        prompt = renderer.prompt("go to the red ball", STEPS[:t], step.observation)
        assert prompt == wanted
        assert rendered.ids[: rendered.spans[t][0]] == prompt
    whole = own(tokenizer, [*messages, messages[0]])
    ends = ids_of(tokenizer, whole)
    assert ends[: len(rendered.ids)] == rendered.ids
    assert rendered.ids[-1] == renderer.end_of_turn == renderer.stops[0]
    assert rendered.ids.count(tokenizer.bos_token_id) == {"bos twice": 2, "no bos": 0, "phi": 0}.get(
        family, 1 if family != "granite" else len(STEPS) * 2 + 1
    )


@pytest.mark.parametrize("style", ["react", "action"])
@pytest.mark.parametrize("kind", ["bytes", "space first"])
@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_kept_to_is_refused_with_the_reason_and_what_to_do(family, kind, style):
    specials, end, template, why = REFUSED[family]
    with pytest.raises(InputError, match=why) as caught:
        ChatRenderer(tokenizer_of(kind, specials, None, end, template), style)
    assert str(caught.value).startswith("prompt: ") and str(caught.value).endswith('; use prompt = "plain"')
    assert "\n" not in str(caught.value)
