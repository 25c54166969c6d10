"""The AgentGym client against a server in this process that behaves as the public repository's servers do."""

import gymnasium as gym
import pytest
from agentgym_server import GOAL, KINDS_THAT_CLOSE, TOOLS, quick, serving  # noqa: F401
from gymnasium.utils.env_checker import check_env

from atlas_ray.envs import EnvironmentDiedError, MissingExtraError, UnknownEnvironmentError
from atlas_ray.envs.agentgym import SERVERS, TASKS, AgentGym, missing, variable

RIGHT = {t: "right with Action Input: {}" for t in TOOLS}


@pytest.mark.parametrize("kind", list(SERVERS))
def test_an_episode_on_every_kind_of_server(serve, kind):
    server = serve(kind)
    env = AgentGym(f"{kind}-v0", url=server.url, max_steps=9)
    observation, info = env.reset(seed=5)
    assert "#5" in observation
    assert info["goal"] == (SERVERS[kind].task if kind in ("maze", "wordle", "bird") else GOAL)
    assert (info["score"], info["success"]) == (0.0, False)
    right, total = RIGHT.get(kind, "right"), 0.0
    for n in (1, 2, 3):
        observation, reward, terminated, truncated, info = env.step(f"Thought:\nOn.\n\nAction:\n{right}")
        total += reward
        assert observation.startswith(f"{n} right")
        assert (terminated, truncated) == (n == 3, False)
        assert info["success"] == (n == 3)
    raw_score = {"sciworld": 100, "babyai": 0.9}.get(kind, 1)
    assert (info["raw_score"], info["score"]) == (raw_score, 0.9 if kind == "babyai" else 1.0)
    assert total == pytest.approx(info["score"])
    with pytest.raises(gym.error.ResetNeeded):
        env.step(right)
    assert server.count("step") == 3, "an action after the end never reaches the server"
    env.reset(seed=6)
    assert server.count("create") == 1, "the session is kept"
    env.close()
    env.close()
    assert server.count("close") == 1
    assert not server.world.sessions or kind not in KINDS_THAT_CLOSE


def test_first_observations_are_those_of_agentgyms_client(serve):
    starts = {k: AgentGym(k, url=serve(k).url).reset(seed=1)[0] for k in ("sciworld", "alfworld", "webshop")}
    assert starts == {
        "sciworld": f"{GOAL}\nYou stand here.\n#1",
        "alfworld": f"You are in a room.\nYour task is to: {GOAL}\n#1\nAVAILABLE ACTIONS: right,wait",
        "webshop": f"WebShop [SEP] Instruction: [SEP] {GOAL} [SEP] Search\n#1",
    }


def test_actions_reach_the_server_as_agentgyms_client_writes_them(serve):
    sent = {}
    for kind, action in (
        ("textcraft", "craft 1 stick, using **2** planks.\nand more"),
        ("bird", "Thought: count\nAction: ```sql\nSELECT 1;\n```"),
        ("webshop", "Thought:\nlook\n\nAction:\nsearch[red cup]"),
        ("weather", "get_date with Action Input: {}"),
        ("movie", "Thought: x\nAction: find with Action Input: {}"),
    ):
        server = serve(kind)
        env = AgentGym(kind, url=server.url)
        env.reset(seed=0)
        env.step(action)
        sent[kind] = server.requests[-1][1]["action"]
    assert sent == {
        "textcraft": "craft 1 stick, using 2 planks",
        "bird": "SELECT 1;",
        "webshop": "search[red cup]",
        "weather": "Action: get_date with Action Input: {}",
        "movie": "Action: find with Action Input: {}",
    }


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("webshop", [f"search[{GOAL}]", "click[red]", "click[Buy Now]"], None),
        ("alfworld", ["right", "wait"], ["left"]),
        ("babyai", ["turn left", "right"], ["right"]),
        ("maze", ["move left", "move right", "move up", "move down"], None),
        ("wordle", ["s h i r e", "f r o w n"], None),
        ("textcraft", [], []),
        ("sciworld", [], []),
    ],
)
def test_admissible_actions_cost_nothing_until_asked_for(serve, kind, before, after):
    server = serve(kind)
    env = AgentGym(kind, url=server.url)
    _, info = env.reset(seed=0)
    env.step("wait")
    env.reset(seed=0)
    assert {name for name, _ in server.requests} == {"create", "reset", "step"}
    assert info["admissible"]() == before
    env.step("wait")
    assert info["admissible"]() == (before if after is None else after)


def test_sciworlds_score_never_falls_below_zero(serve):
    env = AgentGym("sciworld", url=serve("sciworld").url)
    env.reset(seed=0)
    _, reward, _, _, info = env.step("focus on the wrong thing")
    assert (reward, info["score"], info["raw_score"]) == (0.0, 0.0, -100.0)


@pytest.mark.parametrize(("kind", "rounds"), [("webshop", 10), ("babyai", 20), ("bird", 1)])
def test_the_limit_is_agentgyms_or_ones_own(serve, kind, rounds):
    server = serve(kind)
    for env, limit in ((AgentGym(kind, url=server.url), rounds), (AgentGym(kind, max_steps=4, url=server.url), 4)):
        env.reset(seed=3)
        assert [env.step("wait")[3] for _ in range(limit)] == [False] * (limit - 1) + [True]


def test_gymnasiums_own_check_has_nothing_to_say(serve, recwarn):
    check_env(AgentGym("maze", url=serve("maze").url, items=4), skip_render_check=True)
    assert [str(w.message) for w in recwarn] == []


def test_variations_and_options(serve):
    env = AgentGym("alfworld", url=serve("alfworld").url, items=30)
    assert env.variations("alfworld", None) == range(30)
    assert "#7\n" in env.reset(options={"variation": 7})[0]
    assert "#7\n" in env.reset(seed=37)[0]
    with pytest.raises(ValueError, match=r"variation: 29: .*list index out of range"):
        env.reset(options={"variation": 29})
    assert "#2\n" in env.reset(seed=2)[0]
    for wrong in ({"split": "test"}, {"variation": 30}, {"task": "maze"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            env.reset(options=wrong)
    with pytest.raises(ValueError, match="not valid"):
        AgentGym("maze", url=serve("maze").url, items=40).reset(seed=30)


def test_an_item_that_a_server_fails_on_is_named(serve):
    server = serve("webshop")
    with pytest.raises(EnvironmentDiedError, match=r"/reset: HTTP 500"):
        AgentGym(url=server.url, retries=2).reset(seed=100)
    assert (server.count("create"), server.count("reset"), server.count("close")) == (3, 3, 3)


def test_a_clone_replays_in_a_session_of_its_own(serve):
    server = serve("textcraft")
    env = AgentGym("textcraft", url=server.url, max_steps=7)
    env.reset(seed=2)
    env.step("right")
    clone = env.clone()
    assert len(server.world.sessions) == 2
    clone.step("right")
    assert clone.step("right")[2] is True
    assert env.step("right")[:3] == ("2 right", 0.0, False)
    assert (clone.limit, clone.variation) == (7, 2)


def test_urls_come_from_the_environment_and_missing_says_so(serve, monkeypatch):
    server = serve("wordle", prefix="/wordle")
    with pytest.raises(MissingExtraError, match="AGENTGYM_WORDLE_URL"):
        AgentGym("wordle-v0")
    assert "AGENTGYM_WORDLE_URL" in missing("wordle-v0")
    assert "AGENTGYM_<NAME>_URL" in missing()
    monkeypatch.setenv("AGENTGYM_WORDLE_URL", server.url + "/")
    assert missing("wordle-v0") is missing() is None
    assert missing("maze-v0") is not None
    env = AgentGym("wordle-v0")
    assert env.reset(seed=1)[0]
    assert env.clone().reset(seed=1)[0]


@pytest.mark.parametrize(
    "url",
    ["ftp://h/x", "file:///etc/passwd", "h:80", "http://", "http://h:99999999/", "http://h/?key=x", "http://h/#x"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError, match="url"):
        AgentGym(url=url)


@pytest.mark.parametrize("kwargs", [{"items": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"retries": -1}])
def test_arguments_without_sense_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        AgentGym(url="http://h", **kwargs)
    with pytest.raises(UnknownEnvironmentError, match="webshop"):
        AgentGym("shop", url="http://h")


def test_the_table_agrees_with_the_public_figures():
    assert list(TASKS) == [f"{name}-v0" for name in SERVERS]
    rounds = {name: server.rounds for name, server in SERVERS.items()}
    assert rounds == {
        "webshop": 10,
        "alfworld": 30,
        "textcraft": 20,
        "maze": 15,
        "wordle": 8,
        "sciworld": 30,
        "babyai": 20,
        "weather": 10,
        "movie": 12,
        "todo": 15,
        "academia": 12,
        "sheet": 15,
        "bird": 1,
    }
    assert variable("sciworld-v0") == "AGENTGYM_SCIWORLD_URL"
