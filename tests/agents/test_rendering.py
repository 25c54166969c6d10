"""What is trained is what was prompted: prefixes, spans, special tokens, and the agent that writes the episodes."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from atlas_ray import envs
from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rollout import EnvSpec, rollout, start_episode
from atlas_ray.agents.token_agent import Agent
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.trajectory import Step, Trajectory

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"


def bpe():
    """Byte-level BPE whose merges cross spaces, so that text tokenised in one go differs from text in pieces."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    text = [
        "Goal: go to the red ball\nObservation: You see a wall 2 steps left\nThought: go to it\nAction: turn left",
        "Observation: You see nothing\nAction: go forward\na blue key\nThought: pick it up\nAction: pick up",
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(text * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BEGIN, eos_token=END, pad_token=PAD)


TOKENIZERS = {"tiny": build_tokenizer(), "bpe": bpe()}


@pytest.fixture(params=["tiny", "bpe"])
def tokenizer(request):
    return TOKENIZERS[request.param]


@pytest.fixture(params=["react", "action"])
def style(request):
    return request.param


def trajectory(steps, instruction="go to the red ball"):
    return Trajectory(
        id="t",
        env="e",
        task="t",
        seed=0,
        instruction=instruction,
        steps=tuple(steps),
        score=1,
        success=True,
        source="s",
    )


STEPS = [
    Step(observation="You see a wall 2 steps left", thought="go to the red ball", action="turn left"),
    Step(observation="You see nothing", thought="explore", action="go forward"),
    Step(observation="You see a red ball 1 step forward", thought=None, action="pick up"),
    Step(observation="You carry a red ball, You see a wall 1 step right", thought="", action="drop"),
    Step(observation="You see nothing", thought="go to the\n\n red ball\nand then explore", action="toggle"),
]


def written(step, style):
    """What the agent writes in a step, as one string without the end of turn."""
    thought = " ".join((step.thought or "").split())
    said = f" {thought}" if thought else ""
    return f"{said}\nAction: {step.action}" if style == "react" else f" {step.action}"


def text_of(tokenizer, ids):
    """The text of ids, special tokens included; the tiny tokenizer keeps no white space."""
    if tokenizer is TOKENIZERS["bpe"]:
        return tokenizer.decode(ids)
    return "".join(tokenizer.convert_ids_to_tokens(ids))


def same(tokenizer, text):
    return text if tokenizer is TOKENIZERS["bpe"] else "".join(text.split())


def shown(tokenizer, ids):
    text = text_of(tokenizer, ids)
    return text if tokenizer is TOKENIZERS["bpe"] else "".join(text.split())


def test_the_bpe_of_these_tests_merges_across_the_borders_of_pieces():
    ids = TOKENIZERS["bpe"]("Goal: go to the red ball\nObservation: You see nothing")["input_ids"]
    pieces = TOKENIZERS["bpe"].convert_ids_to_tokens(ids)
    assert any("ĠĊ" in p or "Ċ" in p[1:-1] or "Ġ" in p[1:-1] for p in pieces)


def test_the_whole_sequence_is_the_documented_text(tokenizer, style):
    renderer = Renderer(tokenizer, style)
    expected = "Goal: go to the red ball"
    for step in STEPS:
        cue = "\nThought:" if style == "react" else "\nAction:"
        expected += f"\nObservation: {step.observation}{cue}{written(step, style)}{END}"
    if tokenizer.bos_token:
        expected = BEGIN + expected
    assert shown(tokenizer, renderer.render(trajectory(STEPS)).ids) == same(tokenizer, expected)


def test_every_prompt_is_a_prefix_of_the_training_sequence(tokenizer, style):
    renderer = Renderer(tokenizer, style)
    rng = random.Random(0)
    for _ in range(30):
        steps = [rng.choice(STEPS) for _ in range(rng.randint(1, 8))]
        rendered = renderer.render(trajectory(steps))
        for t, step in enumerate(steps):
            prompt = renderer.prompt("go to the red ball", steps[:t], step.observation)
            assert prompt == rendered.ids[: len(prompt)]
            assert len(prompt) == rendered.spans[t][0], "the span begins right behind the prompt"


def test_spans_hold_what_the_agent_wrote_and_nothing_else(tokenizer, style):
    renderer = Renderer(tokenizer, style)
    rendered = renderer.render(trajectory(STEPS))
    assert len(rendered.spans) == len(STEPS)
    for (start, end), step in zip(rendered.spans, STEPS, strict=True):
        assert shown(tokenizer, rendered.ids[start:end]) == same(tokenizer, written(step, style) + END)
        assert rendered.ids[end - 1] == tokenizer.eos_token_id
    # what lies between the spans: header and contexts
    rest, last = [], 0
    for start, end in rendered.spans:
        rest.append(shown(tokenizer, rendered.ids[last:start]))
        last = end
    assert last == len(rendered.ids)
    cue = "\nThought:" if style == "react" else "\nAction:"
    contexts = [same(tokenizer, f"\nObservation: {s.observation}{cue}") for s in STEPS]
    head = (BEGIN if tokenizer.bos_token else "") + "Goal: go to the red ball"
    assert rest == [same(tokenizer, head) + contexts[0], *contexts[1:]]


def test_the_end_of_turn_stands_once_a_step_and_nowhere_else(tokenizer, style):
    rendered = Renderer(tokenizer, style).render(trajectory(STEPS))
    assert [i for i, token in enumerate(rendered.ids) if token == tokenizer.eos_token_id] == [
        end - 1 for _, end in rendered.spans
    ]


@pytest.mark.parametrize("special", [BEGIN, END, PAD, f"{END}{END}", f"x{END}y", f"{PAD} {BEGIN}"])
def test_special_tokens_in_texts_stay_text(tokenizer, style, special):
    renderer = Renderer(tokenizer, style)
    step = Step(observation=f"You see {special} a", thought=f"go {special}", action=f"turn left {special}")
    rendered = renderer.render(trajectory([step, step], instruction=f"go to {special}"))
    assert rendered.ids.count(tokenizer.eos_token_id) == 2
    assert rendered.ids.count(tokenizer.pad_token_id) == 0
    if tokenizer.bos_token:
        assert [i for i, token in enumerate(rendered.ids) if token == tokenizer.bos_token_id] == [0]
        text = tokenizer.decode(rendered.ids, skip_special_tokens=True)
        assert text.count(special) == 2 * (3 if style == "react" else 2) + 1, "nothing is lost either"
    candidate = renderer.action(special)
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(candidate)


def test_an_ordinary_use_of_the_tokenizer_in_between_changes_nothing():
    """Fast tokenizers keep `split_special_tokens` as state."""
    tokenizer = bpe()
    renderer = Renderer(tokenizer)
    assert tokenizer(END)["input_ids"] == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in renderer.encode(f"a {END}")
    assert tokenizer(END)["input_ids"] == [tokenizer.eos_token_id]
    assert tokenizer.eos_token_id not in renderer.encode(f"b {END}")


@pytest.mark.parametrize("thought", [None, "", "  ", "\n\n"])
def test_an_empty_thought_leaves_separator_and_action(tokenizer, thought):
    renderer = Renderer(tokenizer)
    turn = renderer.turn(Step(observation="o", thought=thought, action="drop"))
    assert turn == [*renderer.separator, *renderer.action("drop"), tokenizer.eos_token_id]


def test_a_thought_takes_one_line(tokenizer):
    """Otherwise a thought could hold a separator of its own, and no prompt would tell where it ends."""
    renderer = Renderer(tokenizer)
    one = renderer.turn(Step(observation="o", thought="go to the red ball and explore", action="drop"))
    many = renderer.turn(Step(observation="o", thought="\n go to the\tred ball\n\nand\r\nexplore \n", action=" drop\n"))
    assert one == many


def test_the_action_style_writes_no_thought(tokenizer):
    renderer = Renderer(tokenizer, "action")
    assert renderer.separator == []
    with_thought = renderer.render(trajectory(STEPS))
    bare = renderer.render(trajectory([s.model_copy(update={"thought": None}) for s in STEPS]))
    assert with_thought == bare
    assert "Thought" not in text_of(tokenizer, bare.ids)


def test_callers_may_change_the_lists_they_get(tokenizer, style):
    renderer = Renderer(tokenizer, style)
    before = renderer.render(trajectory(STEPS))
    first = STEPS[0]
    for ids in (
        renderer.encode("\nAction:"),
        renderer.header("go to the red ball"),
        renderer.context(first.observation),
        renderer.action(first.action),
        renderer.turn(first),
        renderer.prompt("go to the red ball", STEPS, first.observation),
    ):
        ids.clear()
    assert renderer.render(trajectory(STEPS)) == before


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(InputError, match="end-of-sequence"):
        Renderer(tokenizer)


def test_decode_of_a_canonical_thought_gives_it_back(tokenizer):
    renderer = Renderer(tokenizer)
    for thought in (
        "go to the red ball",
        "pick it up",
        "put down the blue key",
        "carry it to the grey box",
        "make way",
    ):
        assert renderer.decode([*renderer.encode(f" {thought}"), tokenizer.eos_token_id]) == thought


# --- the agent ---


class Recorder(TransformersEngine):
    """Keeps every prompt that was to be continued or scored."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generated, self.scored = [], []

    def generate(self, prompts, *args, **kwargs):
        self.generated += [tuple(p) for p in prompts]
        return super().generate(prompts, *args, **kwargs)

    def score(self, prompts, *args, **kwargs):
        self.scored += [tuple(p) for p in prompts]
        return super().score(prompts, *args, **kwargs)


def played(style, temperature, episodes=5, slots=3):
    """Episodes of a random tiny model, and the engine that wrote them."""
    engine = Recorder(build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=3), slots, TOKENIZERS["tiny"])
    prefix_groups = ([start_episode(EnvSpec("GoToLocalS5N2", {"max_steps": 6}), seed)] for seed in range(episodes))
    common = {"env": "GoToLocalS5N2", "task": "GoToLocalS5N2", "seed": 0, "score": 0.0, "success": False}
    return engine, [
        Trajectory(id=f.start.id, instruction=f.start.instruction, steps=tuple(f.steps), source="tiny", **common)
        for f in rollout(Agent(engine, style, temperature), prefix_groups)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_an_agent_was_prompted_with_is_what_its_episode_renders_to(style, temperature):
    engine, trajectories = played(style, temperature)
    renderer = Renderer(TOKENIZERS["tiny"], style)
    prompts = sorted(
        tuple(renderer.prompt(t.instruction, t.steps[:i], step.observation))
        for t in trajectories
        for i, step in enumerate(t.steps)
    )
    assert len(prompts) > 15
    assert sorted(engine.generated if style == "react" else engine.scored) == prompts


def test_an_action_is_scored_behind_what_is_trained():
    """The prompt that an action is scored behind equals the training sequence up to the action."""
    engine, trajectories = played("react", 1.0)
    renderer = Renderer(TOKENIZERS["tiny"])
    expected = []
    for t in trajectories:
        rendered = renderer.render(t)
        for step, (_, end) in zip(t.steps, rendered.spans, strict=True):
            expected.append(tuple(rendered.ids[: end - 1 - len(renderer.action(step.action))]))
    assert sorted(engine.scored) == sorted(expected)


def test_a_recorded_episode_replays_in_the_environment():
    _, trajectories = played("react", 1.0)
    for trajectory_ in trajectories:
        env = envs.make("GoToLocalS5N2", max_steps=6)
        observation, info = env.reset(seed=int(trajectory_.id.rsplit("/", 1)[1]))
        assert info["goal"] == trajectory_.instruction
        for step in trajectory_.steps:
            assert step.observation == observation
            observation, reward, *_ = env.step(step.action)
            assert reward == step.reward


def test_sampled_episodes_do_not_depend_on_what_is_played_beside_them():
    alone = {t.id: t for t in played("react", 1.0, slots=1)[1]}
    beside = {t.id: t for t in played("react", 1.0, slots=4)[1]}
    assert alone == beside
