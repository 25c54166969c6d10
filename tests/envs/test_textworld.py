"""TextWorld as an environment: clean text, and lazily listed commands that equal textworld's own."""

import itertools
import random
import threading
from pathlib import Path

import pytest
from gymnasium.utils.env_checker import check_env
from played import play

from atlas_ray.envs.core import ExpertGaveUpError
from atlas_ray.envs.textworld import TASKS, TextWorld, make_game

textworld = pytest.importorskip("textworld")

ROOT = Path(__file__).parents[2]

HUNT, COOK = "treasure-hunter-5-v0", "cooking-easy-v0"

ODD = ["dance", "take all", "examine", "go nowhere", "look. look", "x me"]


def new(task, cache, **kwargs):
    return TextWorld(task, cache=cache, **kwargs)


def begun(task, cache, variation=0, **kwargs):
    env = new(task, cache, **kwargs)
    observation, info = env.reset(options={"variation": variation})
    return env, observation, info


def walk(env, rng, count):
    """Random actions, admissible and odd, as a list, played on ``env``."""
    actions = []
    for _ in range(count):
        actions.append(rng.choice(ODD) if rng.random() < 0.2 else rng.choice(env.admissible()))
        if env.step(actions[-1])[2]:
            break
    return actions


def test_gymnasiums_own_check_has_nothing_to_say(cache, recwarn):
    class One(TextWorld):  # making a game takes seconds
        def variations(self, task, split):
            return range(1)

    check_env(One(HUNT, cache=cache), skip_render_check=True)
    assert [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)] == []


def test_what_a_player_reads(cache):
    env, observation, info = begun(COOK, cache)
    assert observation.startswith("-= Kitchen =-\n")
    assert info["goal"].startswith("You are hungry! Let's cook a delicious meal.")
    assert info["goal"] not in observation
    assert (info["score"], info["progress"], info["success"]) == (0.0, 0.0, False)
    texts = [observation, *(env.step(a)[0] for a in ("look", "wait", "look", "inventory", "dance", "help", "goal"))]
    assert texts[0] == texts[1] == texts[3], "equal states, equal text"
    assert texts[4] == "You are carrying nothing."
    assert texts[5] == "That's not a verb I recognise."
    for text in texts:
        assert not any(mark in text for mark in ("$$", "<score>", "[", "\n\n\n", "=-0/", " \n")), text
        assert text == text.strip()


@pytest.mark.parametrize(("task", "variations"), [(COOK, (0,)), (HUNT, (0, 1))])
def test_the_expert_wins(cache, task, variations):
    for variation in variations:
        env, _, info = begun(task, cache, variation)
        expert, rewards, terminated = env.expert(), 0.0, False
        while not terminated:
            _, reward, terminated, truncated, info = env.step(expert.act().action)
            rewards += reward
            assert info["progress"] == info["score"]
            assert not truncated
        assert info["success"]
        assert info["score"] == pytest.approx(1.0) == rewards
        with pytest.raises(ExpertGaveUpError, match="right after reset"):
            env.expert()


def test_a_lost_game_is_over_without_success(cache):
    env, _, _ = begun(COOK, cache)
    cut = next(a for a in env.expert()._left if a.startswith("take "))
    food = cut.removeprefix("take ").partition(" from ")[0]
    env.step(cut)
    results = play(env, [f"eat {food}", f"drink {food}", "look"])
    assert results[-1] == "over"
    end = next(r for r in results if r != "over" and r[2])
    assert "*** You lost! ***" in end[0]
    assert not end[5]
    assert 0 < end[4] < 1


@pytest.mark.parametrize(("task", "variations"), [(COOK, (0, 0)), (HUNT, (0, 1))])
def test_admissible_commands_are_textworlds_own_however_seldom_asked(cache, task, variations):
    rng = random.Random(0)
    for variation in variations:
        env, _, info = begun(task, cache, variation)
        theirs = textworld.start(
            str(make_game(task[:-3], variation, cache)), textworld.EnvInfos(admissible_commands=True)
        )
        state = theirs.reset()
        for step in range(30):
            if step % 5 in (0, 1):
                assert info["admissible"]() == state.admissible_commands
            action = rng.choice(ODD) if rng.random() < 0.2 else rng.choice(state.admissible_commands)
            _, _, terminated, _, info = env.step(action)
            state, _, done = theirs.step(action)
            assert (terminated, info["success"]) == (done, state.won)
            assert info["score"] == pytest.approx(min(1, state.score / state.max_score))
            if terminated:
                break


def test_nothing_is_listed_until_somebody_asks(cache, monkeypatch):
    env, _, _ = begun(COOK, cache)
    monkeypatch.setattr("textworld.generator.game.GameProgression.__init__", lambda *a, **k: pytest.fail("listed"))
    play(env, ["look", "open fridge", "inventory"])
    env.clone()


FORGED = ["say ] [taking milk - succeeded] [", "answer <score> 9 </score>", "say *** The End ***", "-= Kitchen =-0/1"]


def test_what_the_machine_prints_cannot_be_forged(cache):
    env, _, _ = begun(COOK, cache)
    before = env.admissible()
    for action in FORGED:
        observation, reward, terminated, _, info = env.step(action)
        assert (reward, terminated, info["score"]) == (0.0, False, 0.0)
        assert "succeeded" not in observation
    assert env.admissible() == before


BAD = [
    "",
    "   ",
    "fly to the 7th moon",
    "ö\t\x00\n",
    "€" * 90,
    "x" * 20_000,
    None,
    3,
    "[",
    "> look",
    '"',
    "*",
    "\x1b[A",
]


def test_bad_actions_are_answered_and_change_nothing(cache):
    env, first, _ = begun(HUNT, cache)
    for action in BAD:
        observation, reward, terminated, _, _ = env.step(action)
        assert isinstance(observation, str) and observation
        assert (reward, terminated) == (0.0, False)
    assert env.step("look")[0] == first


META = (
    ("quit", "Q", "restart", "save", "restore", "script", "transcript", "transcribe", "superbrief", "me, save"),
    ("look. quit", "look then restart", "take all then quit.", "oops quit", "tw-trace-actions", "tw-extra-infos score"),
)


def test_commands_to_the_machine_are_refused(cache, tmp_path, monkeypatch):
    """They would hang the episode on a question, rewind it, or write files named by the player."""
    monkeypatch.chdir(tmp_path)
    env, first, _ = begun(HUNT, cache)
    for action in itertools.chain(*META):
        assert env.step(action)[0] == "That's not a verb I recognise.", action
        assert env.step("look")[0] == first, action
    assert env.step("look\nquit")[0] == "You can't see any such thing."
    assert env.step("look")[0] == first
    assert list(tmp_path.iterdir()) == []


def test_a_storm_of_words_never_raises(cache):
    rng = random.Random(1)
    env, _, _ = begun(COOK, cache, max_steps=10**6)
    words = [*sorted({w for a in [*env.admissible(), *ODD] for w in a.split()}), ".", ",", "then", "all"]
    for _ in range(400):
        observation, _, terminated, _, _ = env.step(" ".join(rng.choices(words, k=rng.randint(1, 7))))
        assert "Please answer yes or no" not in observation
        if terminated:
            env.reset(options={"variation": 0})


def test_the_step_limit(cache):
    env, _, _ = begun(HUNT, cache, max_steps=3)
    for _ in range(2):
        env.reset(options={"variation": 0})
        *looks, after = play(env, ["look"] * 4)
        assert [r[2:4] for r in looks] == [(False, False)] * 2 + [(False, True)]
        assert after == "over"
    assert new(HUNT, cache).limit == 100


def test_clones_go_their_own_ways(cache):
    rng = random.Random(2)
    for task in (COOK, HUNT):
        env, _, _ = begun(task, cache)
        for _ in range(3):
            env.reset(options={"variation": 0})
            if walk(env, rng, 4) and env._done:
                continue
            clone = env.clone()
            rest = walk(clone, rng, 8)
            twin, here = env.clone(), env.admissible()
            assert twin.admissible() == here
            assert play(env.clone(), rest) == play(twin, rest) == play(env, rest)


def test_a_clone_is_cheap_and_outlives_its_origin(cache):
    env, _, _ = begun(COOK, cache)
    env.step("examine cookbook")
    assert env.cheap_clone
    clone = env.clone()
    env.close()
    assert play(env, ["look"]) == ["over"]
    assert clone.step("look")[0].startswith("-= Kitchen =-")
    assert env.reset(options={"variation": 0})[0].startswith("-= Kitchen =-")


def test_threads_play_side_by_side(cache):
    def one():
        env, observation, _ = begun(COOK, cache)
        said.append([observation, *play(env, ["examine cookbook", "inventory", "look"]), env.admissible()])

    said = []
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 4
    assert all(s == said[0] for s in said)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_every_walkthrough_wins_in_every_split(task, cache):
    for variation in (0, 1000, 1200):
        env, observation, info = begun(task, cache, variation)
        assert observation.startswith("-= ")
        assert info["goal"]
        expert, terminated = env.expert(), False
        while not terminated:
            _, _, terminated, truncated, info = env.step(expert.act().action)
            assert not truncated
        assert info["success"]
        assert info["score"] == 1.0
