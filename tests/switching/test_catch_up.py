"""What a model reads at a call of the steps that it missed: all, a window of them, or the last few; counted by hand."""

import pytest
from switch_models import agents, model, specs

from atlas_ray.agents.chat_agent import ChatAgent
from atlas_ray.agents.token_agent import Agent
from atlas_ray.data.records import Step
from atlas_ray.engines import TransformersEngine
from atlas_ray.engines.chat_endpoint import ChatEndpoint
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.switching.players import check_players
from atlas_ray.switching.text_game import TextGame

SCRIPT = [0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 1]
"""Who acts: DEEPTHINK after three steps, again at once, after one, again at once, and after three."""
CALLS = [3, 4, 6, 7, 11]


def played(**reads):
    """The script with a DEEPTHINK that reads so: what it saw at each call, and what it was charged."""
    deepthink = Agent(TransformersEngine(model("deepthink"), 1, build_tokenizer()), "action", **reads)
    game = TextGame(specs(30), [agents(1)[0], deepthink], 1)
    game.begin(0, 4)
    told, before = [], game.usage(0)[1]
    for choice in SCRIPT:
        prompt = game.agents[1].prompt(0)
        assert not game.advance({0: choice})[0].over
        now = game.usage(0)[1]
        if choice:
            told.append((prompt, now.tokens - before.tokens, now.catch_up - before.catch_up, now.flops - before.flops))
        before = now
    return game, told


def parts(game):
    """Tokens of the goal, and of each step its observation and, with what stands before the next, its turn."""
    episode, renderer = game.episodes[0], game.agents[1].renderer
    turns = [renderer.turn(step) + renderer.gap for step in episode.steps]
    return renderer.header(episode.goal), [renderer.context(s.observation) for s in episode.steps], turns


def joined(steps):
    return [token for step in steps for token in step]


def shared(before, prompt):
    """Tokens with which both begin: observations repeat, and what is skipped may begin as what was read."""
    return next((k for k, (a, b) in enumerate(zip(before, prompt, strict=False)) if a != b), len(before))


def test_a_whole_history_is_read_once():
    game, told = played()
    header, seen, turns = parts(game)
    steps, size = [s + t for s, t in zip(seen, turns, strict=True)], 2 * game.agents[1].parameters
    read, missed = 0, [3, 0, 1, 0, 3]
    for (prompt, tokens, catch_up, flops), t, gap in zip(told, CALLS, missed, strict=True):
        assert prompt == header + joined(steps[:t]) + seen[t]
        assert tokens == len(prompt) - read, "an action of one token is scored without feeding it"
        assert catch_up == size * sum(len(step) for step in steps[t - gap : t])
        assert flops == size * tokens
        read = len(prompt)


@pytest.mark.parametrize("most", [0, 1, 2, 3])
def test_of_what_was_missed_the_last_steps_are_read(most):
    """Skipped for good is what a gap of more steps hides; a call after a short one reads on."""
    game, told = played(catch_up=most)
    header, seen, turns = parts(game)
    size, steps = game.agents[1].parameters, [s + t for s, t in zip(seen, turns, strict=True)]
    first = 3 - most if most < 3 else 0
    second = 6 if most < 1 else first
    third = 11 - most if most < 3 else second
    starts = [first, first, second, second, third]
    for (prompt, tokens, catch_up, _), start, t in zip(told, starts, CALLS, strict=True):
        assert prompt == header + joined(steps[start:t]) + seen[t]
    before = []
    for (prompt, tokens, catch_up, flops), t, gap in zip(told, CALLS, [3, 0, 1, 0, 3], strict=True):
        same = shared(before, prompt)
        missed = sum(len(step) for step in steps[t - min(gap, most) : t])
        if before and gap <= most:
            assert same == len(before)
            assert tokens == len(turns[t - gap - 1]) + missed + len(seen[t])
        else:
            missed = max(0, missed - max(0, same - len(header)))
            assert tokens == max(1, len(prompt) - same)  # the last one is always fed
        assert catch_up == 2 * size * missed
        assert flops == 2 * size * tokens
        before = prompt


def test_a_window_is_read_again_at_every_call():
    game, told = played(window=2)
    header, seen, turns = parts(game)
    size = game.agents[1].parameters
    for n, ((prompt, tokens, catch_up, _), t) in enumerate(zip(told, CALLS, strict=True)):
        shown = joined(seen[i] + turns[i] for i in (t - 2, t - 1))
        assert prompt == header + shown + seen[t]
        same = shared(told[n - 1][0], prompt) if n else 0
        assert tokens == max(1, len(prompt) - same)
        own = [i for i in (t - 2, t - 1) if SCRIPT[i] and not any(SCRIPT[i + 1 : t])]
        turn = sum(len(turns[i]) for i in own)
        assert catch_up == 2 * size * (len(header) + len(shown) - max(same, len(header)) - turn)


def test_a_model_that_takes_every_step_has_nothing_to_catch_up():
    for reads in ({}, {"catch_up": 0}, {"catch_up": 3}):
        deepthink = Agent(TransformersEngine(model("deepthink"), 1, build_tokenizer()), "action", **reads)
        game = TextGame(specs(8), [agents(1)[0], deepthink], 1)
        game.begin(0, 4)
        while not game.episodes[0].over:
            game.advance({0: 1})
        episode, renderer = game.episodes[0], deepthink.renderer
        assert game.usage(0)[1].catch_up == 0 < game.usage(0)[1].flops
        assert game.agents[1].prompt(0) == renderer.prompt(episode.goal, episode.steps, episode.observation)


def test_an_endpoint_is_shown_what_it_may_catch_up():
    agent = ChatAgent(ChatEndpoint("http://127.0.0.1:9/v1", "m", concurrency=1), "action", catch_up=1)
    offered = ["left", "right"]
    agent.start(0, "go", [], "room 0")

    def step(number, called):
        agent._offer(0, offered)
        shown = agent.messages(0)
        if called:
            agent.mark_read(0)
            assert agent.messages(0) == shown
        agent.advance(0, Step(observation=f"room {number}", thought=None, action="left"), f"room {number + 1}")
        users = [m["content"] for m in shown if m["role"] == "user"]
        return [next(n for n in range(9) if f"room {n}" in text) for text in users], users

    assert step(0, False)[0] == [0]
    assert step(1, False)[0] == [0, 1]
    rooms, users = step(2, True)
    assert rooms == [1, 2] and sum("- left" in text for text in users) == 1, "the list is shown where it sees it"
    assert step(3, True)[0] == [1, 2, 3]
    assert step(4, False)[0] == [1, 2, 3, 4]
    assert step(5, True)[0] == [1, 2, 3, 4, 5]
    assert [step(n, False)[0] for n in (6, 7, 8)][-1] == [7, 8]


def test_a_recipe_says_what_each_model_reads():
    def recipe(**more):
        models = ["tiny-quick", {"model": "tiny-deepthink", **more}]
        table = {"models": models, "levels": ["GoToLocal"], "costs": [0.1]}
        return Recipe.model_validate({"name": "x", "switch": table})

    check_players(recipe(catch_up=2))
    check_players(recipe(window=2))
    with pytest.raises(InputError, match=r"switch\.models\.1\.catch_up"):
        check_players(recipe(catch_up=2, window=2))
    with pytest.raises(ValueError, match="catch_up"):
        recipe(catch_up=-1)
    with pytest.raises(InputError, match="catch_up"):
        Agent(TransformersEngine(model("quick"), 1, build_tokenizer()), "action", window=1, catch_up=1)
