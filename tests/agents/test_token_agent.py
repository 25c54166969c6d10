"""The token agent: whole turns that it writes, the window that it sees, and what it feeds its engine."""

import inspect
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rollout import EnvSpec, rollout, start_episode
from atlas_ray.agents.token_agent import Agent, Decision, Player
from atlas_ray.data.parsing import LONGEST_ACTION
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.trajectory import Step, Trajectory

BEGIN, END = "<|begin|>", "<|end|>"
MOVES = ["turn left", "go forward"]
STEPS = [Step(observation=f"room {n}", thought=f"think {n}", action=f"go to {n}") for n in range(6)]


def letters():
    """A token a byte, so that the length of a text is its number of tokens."""
    alphabet = [BEGIN, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=BEGIN, eos_token=END)


class Scripted:
    """An engine that answers a prompt with what ``script`` makes of it: text, or token ids."""

    tokenizer = letters()

    def __init__(self, script, slots=1, context=100_000):
        self.script, self.slots, self.context = script, slots, context
        self.calls = []

    def generate(self, prompts, slots, stop, max_tokens, temperature=0.0, seeds=None):
        self.calls.append(([list(p) for p in prompts], list(slots), list(stop), max_tokens, temperature, list(seeds)))
        replies = [self.script(prompt) for prompt in prompts]
        ids = [Renderer(self.tokenizer).encode(r) if isinstance(r, str) else r for r in replies]
        return [i[:max_tokens] for i in ids]


class Recorder(TransformersEngine):
    """Keeps what it was asked to continue, and with what it did."""

    def __init__(self, *args):
        super().__init__(*args)
        self.written = []

    def generate(self, prompts, *args):
        found = super().generate(prompts, *args)
        self.written += [(list(p), list(w)) for p, w in zip(prompts, found, strict=True)]
        return found


def writer(reply, style="react", **kwargs):
    return Agent(Scripted(lambda _: reply), style, decide="generate", **kwargs)


def decided(agent, actions=MOVES):
    agent.start(0, "go", [], "room")
    return agent.act([0], [actions], [7])[0]


def prefix_groups(seeds, level="GoToLocalS5N2", **options):
    return ([start_episode(EnvSpec(level, options), seed)] for seed in seeds)


def episodes(agent, seeds, **options):
    return {f.start.id: f for f in rollout(agent, prefix_groups(seeds, **options))}


def taken(played):
    return {name: [(s.thought, s.action, s.observation) for s in f.steps] for name, f in played.items()}


# --- generate ---


@pytest.mark.parametrize(
    ("reply", "outcome", "decision"),
    [
        (" on\nAction: turn left", "ok", Decision("on", "turn left")),
        ("\n on\n and on\n\nAction:\nTurn  LEFT.", "ok", Decision("on\n and on", "turn left")),
        ("\nAction: turn left", "ok", Decision("", "turn left")),
        (" on\nAction: turn left\nObservation: door\nAction: go forward", "ok", Decision("on", "turn left")),
        (" on\nAction: fly", "not admissible", Decision("on", "fly")),
        (" on\nAction: fly\nObservation: door\nAction: turn left", "not admissible", Decision("on", "fly")),
        (" on\nAction: turn right", "not admissible", Decision("on", "turn right")),
        (" I cannot. ", "no action", Decision(None, "I cannot.")),
        (" go forward", "no action", Decision(None, "go forward")),
        (" on\nAction:", "no action", Decision("on", "on\nAction:")),
        ("", "empty", Decision(None, "(no answer)")),
        (" \n\t\n", "empty", Decision(None, "(no answer)")),
        (f" {'a' * 1500}\nAction: {'b' * 1500}", "too long", None),
    ],
)
def test_every_outcome_of_a_written_turn(reply, outcome, decision):
    agent = writer(reply, thought_tokens=4000)
    found = decided(agent)
    if decision is None:
        decision = Decision("a" * 1500, reply.strip()[:LONGEST_ACTION])
    assert found == decision
    assert agent.tally == {outcome: 1}


@pytest.mark.parametrize(
    ("reply", "outcome", "action"),
    [
        (" turn left", "ok", "turn left"),
        ("\n```\nturn left\n```", "ok", "turn left"),
        (" on\nAction: turn left", "ok", "turn left"),
        (" fly", "not admissible", "fly"),
        (" fly\nObservation: door\nAction: turn left", "not admissible", "fly"),
        ("", "empty", "(no answer)"),
    ],
)
def test_a_written_action_without_thoughts(reply, outcome, action):
    agent = writer(reply, "action", action_tokens=100)
    assert decided(agent) == Decision(None, action)
    assert agent.tally == {outcome: 1}


def test_where_nothing_is_listed_any_action_will_do():
    agent = writer(" on\nAction: search[red shoes]")
    assert decided(agent, []) == Decision("on", "search[red shoes]")
    assert agent.tally == {"ok": 1}


def test_a_turn_that_was_cut_off_counts_by_its_whole_lines():
    long = len(" on\nAction: go to 1")
    limits = {"thought_tokens": 4, "action_tokens": long - 4 - len("\nAction:")}
    agent = writer(" on\nAction: go to 12", **limits)
    assert decided(agent, ["go to 1", "go to 12"]) == Decision("on", "go to 1"), "as far as it was written"
    assert agent.tally == {"too long": 1}
    limits["action_tokens"] += 4
    agent = writer(" on\nAction: go to 1\nbecause", **limits)
    assert decided(agent, ["go to 1", "go to 12"]) == Decision("on", "go to 1")
    assert agent.tally == {"ok": 1}
    agent = writer(" I am still thinking", thought_tokens=1, action_tokens=1)
    assert decided(agent) == Decision(None, "I am stil")
    assert agent.tally == {"too long": 1}


@pytest.mark.parametrize(("style", "most"), [("react", 5 + len("\nAction:") + 9), ("action", 9)])
def test_a_turn_is_one_request(style, most):
    agent = Agent(Scripted(lambda _: " x", slots=3), style, 0.5, decide="generate", thought_tokens=5, action_tokens=9)
    for slot in range(3):
        agent.start(slot, "go", [], f"room {slot}")
    assert len(agent.act([2, 0], [MOVES, []], [11, 12])) == 2
    prompts = [Renderer(letters(), style).prompt("go", [], f"room {slot}") for slot in (2, 0)]
    assert agent.engine.calls == [(prompts, [2, 0], [letters().eos_token_id], most, 0.5, [11, 12])]
    assert agent.act([], [], []) == []
    assert len(agent.engine.calls) == 1


def test_the_environment_answers_what_is_no_action():
    agent = writer(" on\nAction: fly")
    (finished,) = rollout(agent, prefix_groups([0], max_steps=3))
    assert [s.action for s in finished.steps] == ["fly"] * 3
    assert all("That is not an action" in s.observation for s in finished.steps[1:])
    assert agent.tally == {"not admissible": 3}
    assert not finished.success and not finished.lost


def test_special_tokens_are_text_where_they_are_text():
    tokenizer = letters()
    agent = writer(f" a {END}\nAction: fly {END}")
    agent.start(0, f"go {END}", [], f"room {END}{BEGIN}")
    (decision,) = agent.act([0], [MOVES], [0])
    assert decision == Decision(f"a {END}", "fly"), "what ends a turn is no part of its action"
    agent.advance(0, Step(observation=f"room {END}{BEGIN}", thought=decision.thought, action=decision.action), END)
    prompt = agent.prompt(0)
    assert prompt.count(tokenizer.eos_token_id) == 1, "the end of the one turn"
    assert prompt.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(prompt).count(END) == 1 + 4
    real = [*Renderer(tokenizer).encode(" a\nAction: turn left"), tokenizer.bos_token_id]
    assert decided(writer(real)) == Decision("a", "turn left")


def test_what_tiny_quick_writes_is_what_it_would_choose():
    """Every action of BabyAI is one token for it, so one that it writes greedily is the likeliest of all."""
    engine = TransformersEngine("tiny-quick", 5)
    scores, writes = Agent(engine), Agent(engine, decide="generate")
    env = start_episode(EnvSpec("GoToLocalS5N2"), 0).env
    assert all(len(writes.renderer.action(a)) == 1 for a in env.admissible())
    chosen, written = (episodes(agent, range(12), max_steps=12) for agent in (scores, writes))
    decisions = sum(len(f.steps) for f in written.values())
    assert decisions > 30
    assert writes.tally == {"ok": decisions}
    assert scores.tally == {}
    assert taken(written) == taken(chosen)


@pytest.mark.parametrize("style", ["react", "action"])
def test_sampled_turns_do_not_depend_on_what_is_played_beside_them(style):
    alone, beside, other = (
        taken(episodes(Agent(TransformersEngine("tiny-quick", slots), style, heat, decide="generate"), range(4)))
        for slots, heat in ((1, 1.0), (3, 1.0), (3, 2.0))
    )
    assert alone == beside != other


# --- the window ---


@pytest.mark.parametrize("style", ["react", "action"])
@pytest.mark.parametrize("window", [None, 0, 1, 4, 9])
def test_a_prompt_shows_the_last_steps(window, style):
    agent = Agent(Scripted(None), style, window=window)
    shown = lambda steps: steps if window is None else steps[max(0, len(steps) - window) :]  # noqa: E731
    for taken_before in (0, 3):
        agent.start(0, "go", STEPS[:taken_before], STEPS[taken_before].observation)
        for n in range(taken_before, len(STEPS) - 1):
            assert agent.prompt(0) == agent.renderer.prompt("go", shown(STEPS[:n]), STEPS[n].observation)
            agent.advance(0, STEPS[n], STEPS[n + 1].observation)


def test_a_window_is_not_negative():
    with pytest.raises(InputError, match="window: must be 0 or more"):
        Agent(Scripted(None), window=-1)


@pytest.mark.parametrize(
    ("style", "settings", "room"),
    [
        ("react", {}, 16 + 64),
        ("action", {}, 16 + 64),
        ("react", {"thought_tokens": 100}, 100 + 64),
        ("react", {"decide": "generate"}, 16 + len("\nAction:") + 32),
        ("react", {"decide": "generate", "thought_tokens": 100, "action_tokens": 50}, 100 + len("\nAction:") + 50),
        ("action", {"decide": "generate"}, 32),
        ("action", {"decide": "generate", "window": 2}, 32),
    ],
)
def test_there_is_room_for_exactly_one_more_turn(style, settings, room):
    agent = Agent(Scripted(None), style, **settings)
    agent.start(0, "go", STEPS[:-1], STEPS[-1].observation)
    shown = STEPS[:-1][-2:] if "window" in settings else STEPS[:-1]
    agent.engine.context = len(agent.renderer.prompt("go", shown, STEPS[-1].observation)) + room
    assert agent.fits(0)
    agent.engine.context -= 1
    assert not agent.fits(0)


@pytest.mark.parametrize(("decide", "room"), [("score", 16 + 64), ("generate", 16 + 1 + 32)])
def test_an_episode_may_outlive_the_context_with_a_window_only(decide, room):
    def agent(window):
        model = build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=3, context=300)
        return Agent(TransformersEngine(model, 1, build_tokenizer()), decide=decide, window=window)

    whole = agent(None)
    (cut,) = rollout(whole, prefix_groups([2], max_steps=30))
    assert cut.error == "the context of the model is full"
    *before, last = cut.steps
    assert len(whole.renderer.prompt(cut.start.instruction, before, last.observation)) + room <= 300
    assert len(whole.prompt(0)) + room > 300
    (finished,) = rollout(agent(1), prefix_groups([2], max_steps=30))
    assert finished.error is None
    assert len(cut.steps) < len(finished.steps) == 30


# --- what it costs ---


def record(finished):
    return Trajectory(
        id=finished.start.id,
        instruction=finished.start.instruction,
        steps=tuple(finished.steps),
        **{"env": "e", "task": "t", "seed": 0, "score": 0.0, "success": False, "source": "tiny-quick"},
    )


@pytest.mark.parametrize(("decide", "unread"), [("generate", 1), ("score", 2)])
def test_without_a_window_every_token_is_fed_once(decide, unread):
    """Never fed: the end of the last turn, and the action that was only scored."""
    engine = TransformersEngine("tiny-quick", 1)
    agent = Agent(engine, decide=decide)
    (finished,) = rollout(agent, prefix_groups([4], level="PickupLoc", max_steps=10))
    assert len(finished.steps) == 10
    assert not agent.tally or agent.tally == {"ok": 10}
    assert engine.computed_tokens == [len(agent.renderer.render(record(finished)).ids) - unread]
    assert finished.computed == engine.computed_tokens[0]


@pytest.mark.parametrize("window", [None, 0, 2])
def test_with_a_window_everything_behind_the_header_is_fed_again(window):
    engine = Recorder("tiny-quick", 1)
    agent = Agent(engine, decide="generate", window=window)
    seen = ["You see a red ball", "You see nothing", "You carry a key", "red ball", "grey box", "blue key", "a door"]
    agent.start(0, "go to the red ball", [], seen[0])
    header, old = len(agent.renderer.header("go to the red ball")), 0
    for n, (observation, following) in enumerate(pairwise(seen)):
        before = engine.computed_tokens[0]
        (decision,) = agent.act([0], [[]], [0])
        prompt, written = engine.written[-1]
        # what begins the first observation shown, its heading, stands there whatever is shown
        known = header + 1 if window is not None and n > window else old
        assert engine.computed_tokens[0] - before == len(prompt) - known + len(written)
        old = len(prompt) + len(written)
        agent.advance(0, Step(observation=observation, thought=decision.thought, action=decision.action), following)
    assert agent.tally == {"ok": len(seen) - 1}


# --- who plays ---


@pytest.mark.parametrize("agent", [Agent, ChatAgent])
def test_both_agents_are_players(agent):
    for name in ("start", "advance", "fits", "act"):
        wanted, found = (inspect.signature(getattr(kind, name)).parameters for kind in (Player, agent))
        assert list(found) == list(wanted)
        assert [p.annotation for p in found.values()] == [p.annotation for p in wanted.values()]
