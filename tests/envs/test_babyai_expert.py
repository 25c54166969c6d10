"""The expert plays, says what it wants in words the tiny models know, and never runs for ever."""

import pickle
import threading

import pytest

from atlas_ray import envs
from atlas_ray.envs.babyai_text import ACTIONS
from atlas_ray.models.tiny import build_tokenizer

LEVELS = [
    "GoToLocal",
    "PickupDist",
    "PutNextLocalS5N3",
    "PickupLoc",
    "OpenDoor",
    "OpenTwoDoors",
    "Unlock",
    "UnlockPickup",
    "BlockedUnlockPickup",
    "GoTo",
    "Pickup",
    "PutNextS5N2",
    "SynthS5R2",
    "SynthSeq",
    "BossLevel",
    "KeyCorridorS3R2",
    "ActionObjDoor",
    "FindObjS5",
    "OneRoomS8",
]


def episode(level, seed, cpu_seconds=2.0, limit=300):
    """Every (observation, expert step) of an episode, the goal and the last info."""
    env = envs.make(level)
    observation, info = env.reset(seed=seed)
    goal, played = info["goal"], []
    expert = envs.BabyAIExpert(env, cpu_seconds)
    for _ in range(limit):
        step = expert.act()
        played.append((observation, step))
        observation, _, terminated, truncated, info = env.step(step.action)
        if terminated or truncated:
            break
    return goal, played, info


@pytest.mark.parametrize("level", ["GoToLocal", "PickupDist", "PutNextLocalS5N3"])
def test_small_levels_are_solved(level):
    for seed in range(12):
        _, played, info = episode(level, seed)
        assert info["success"]
        assert all(step.action in ACTIONS and step.thought.strip() == step.thought != "" for _, step in played)


def test_the_thought_is_the_sub_goal_in_hand():
    for seed in range(8):
        goal, played, _ = episode("GoToLocal", seed)
        assert goal.replace("go to a ", "go to the ") in {step.thought for _, step in played}
    goal, played, _ = episode("PutNextLocalS5N3", 0)
    thoughts = [step.thought for _, step in played]
    kinds = [t for i, t in enumerate(thoughts) if i == 0 or thoughts[i - 1] != t]
    moved, fixed = goal.removeprefix("put the ").split(" next to the ")
    order = [f"go to the {moved}", "pick it up", f"carry it to the {fixed}", f"put down the {moved}"]
    assert [k for k in kinds if k in order] == order


def test_the_same_seed_gives_the_same_episode():
    for level in ("PickupDist", "SynthSeq"):
        assert episode(level, 3)[:2] == episode(level, 3)[:2]


def test_the_tiny_tokenizer_knows_every_word():
    tokenizer = build_tokenizer()
    texts = set()
    for level in LEVELS:
        for seed in range(2):
            goal, played, _ = episode(level, seed)
            texts.add(goal)
            texts |= {text for observation, step in played for text in (observation, step.thought, step.action)}
    texts |= set(ACTIONS)
    unknown = {text for text in texts if tokenizer.unk_token_id in tokenizer(text)["input_ids"]}
    assert not unknown
    assert len(texts) > 300


@pytest.mark.parametrize("level", ["KeyInBox", "PutNextS5N2Carrying", "PutNextS6N3Carrying", "PutNextS7N4Carrying"])
def test_levels_the_bot_cannot_play_are_given_up(level):
    for seed in range(3):
        with pytest.raises(envs.ExpertGaveUpError, match="the bot"):
            episode(level, seed)


@pytest.mark.parametrize(("level", "seed"), [("UnlockToUnlock", 4), ("UnlockToUnlock", 7), ("GoToImpUnlock", 6)])
def test_a_plan_that_goes_round_for_ever_is_given_up(level, seed):
    with pytest.raises(envs.ExpertGaveUpError, match=r"no action within 0\.1 s of CPU time"):
        episode(level, seed, cpu_seconds=0.1)


class Restless:
    """A sub-goal that replaces itself by another of its kind and never names an action."""

    def __init__(self, bot):
        self.bot, self.datum, self.reason = bot, None, None

    def update_agent_attributes(self):
        pass

    def replan_after_action(self, action):
        pass

    def is_exploratory(self):
        return False

    def replan_before_action(self):
        self.bot.stack.pop()
        self.bot.stack.append(Restless(self.bot))


def restless_expert():
    env = envs.make("GoToLocal")
    env.reset(seed=0)
    expert = envs.BabyAIExpert(env, cpu_seconds=0.05)
    expert._bot.stack.append(Restless(expert._bot))
    return expert


def test_push_and_pop_for_ever_is_given_up_again_and_again():
    expert = restless_expert()
    for _ in range(2):
        with pytest.raises(envs.ExpertGaveUpError, match="CPU time"):
            expert.act()


def test_the_limit_is_one_of_a_move_and_not_of_the_episode(monkeypatch):
    """The clock is read anew at every move: many cheap moves never add up to the limit."""
    now = iter(range(10_000))
    monkeypatch.setattr("atlas_ray.envs.babyai_expert.time.thread_time", lambda: next(now) * 0.01)
    _, played, info = episode("PutNextLocal", 0, cpu_seconds=0.15)
    assert info["success"]
    assert next(now) * 0.01 > 0.15, "the episode as a whole took longer than the limit"
    assert len(played) > 3


def test_it_works_in_a_thread():
    results = []

    def work():
        results.append(episode("GoToLocal", 0)[2]["success"])
        try:
            restless_expert().act()
        except envs.ExpertGaveUpError:
            results.append("gave up")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert results == [True, "gave up"]


def test_the_error_survives_pickling():
    error = pickle.loads(pickle.dumps(envs.ExpertGaveUpError("no plan")))
    assert isinstance(error, RuntimeError)
    assert str(error) == "no plan"


def test_playing_does_not_touch_the_environment_by_itself():
    """Asking the expert leaves the environment as it was; only ``step`` changes it."""
    env = envs.make("PutNextLocal")
    env.reset(seed=1)
    twin = env.clone()
    expert = envs.BabyAIExpert(env)
    for _ in range(6):
        action = expert.act().action
        assert env.step(action)[:4] == twin.step(action)[:4]
