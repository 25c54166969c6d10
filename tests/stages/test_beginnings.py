"""A server or process that is down while an episode begins: lost like one that dies in a step, within bounds."""

import json
import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import dying_env
import numpy as np
import pytest
from agentgym_server import broken, drop, hang, quick, raw, serving, vanish  # noqa: F401

from atlas_ray import envs, preflight
from atlas_ray.agents.rollout import EnvSpec, EpisodeStarter, rollout
from atlas_ray.data.replies import Replies
from atlas_ray.errors import AtlasError, EnvironmentGoneError, InputError
from atlas_ray.finetune import validation
from atlas_ray.finetune.process_group import ProcessGroup
from atlas_ray.models.encoders import make_encoder
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.stages.collect import collect
from atlas_ray.switching.baselines import Always
from atlas_ray.switching.environment import SwitchingVectorEnv
from atlas_ray.switching.evaluate import rollout_policy
from atlas_ray.switching.players import ExpertPlayer
from atlas_ray.switching.policies import scorable_episodes as lost_out
from atlas_ray.switching.text_game import TextGame
from tests.agents.test_rollout import Fixed, recipe, scored

NAME = "dying_env:Dying/Doors-v0"
BAD = Counter()
"""Variation -> how many of its beginnings still fail."""


@pytest.fixture(autouse=True)
def _failing(monkeypatch):
    dying_env.DEATHS.clear()
    BAD.clear()
    begin = dying_env.Doors.begin

    def failing(self, variation):
        if BAD[variation] > 0:
            BAD[variation] -= 1
            raise envs.EnvironmentDiedError("connection refused")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    yield
    dying_env.DEATHS.clear()


def events(run_dir, event):
    return [row for row in recover_jsonl(run_dir / "events.jsonl") if row["event"] == event]


@pytest.mark.parametrize(
    ("failures", "attempts", "lost"),
    [(2, 1, False), (3, 2, False), (5, 2, False), (6, 3, False), (9, 3, True), (99, 3, True)],
)
def test_an_evaluation_begins_an_episode_again_and_leaves_out_what_never_begins(
    tmp_path, monkeypatch, capsys, failures, attempts, lost
):
    BAD[45] = failures
    rows, table = scored(tmp_path, monkeypatch)
    (row,) = [r for r in rows if r["seed"] % 20 == 5 and r["model"] == "none"]
    assert (row["attempts"], row["lost"], row["steps"] > 0) == (attempts, lost, not lost)
    assert all(arm.held_in.success == 1.0 for arm in table.arms), "lost is no failure"
    assert {arm.held_in.episodes for arm in table.arms} <= {19, 20}
    if lost:
        assert "1 episodes were lost" in capsys.readouterr().out.replace("2 episodes", "1 episodes")
        assert "connection refused" in {e["why"] for e in events(tmp_path, "failed episode")}.pop()


def test_a_death_at_the_beginning_and_one_in_a_step_count_alike(tmp_path, monkeypatch):
    BAD[45] = 6
    dying_env.DEATHS[47] = 2
    rows, _ = scored(tmp_path, monkeypatch)
    first = {r["seed"] % 20 + 40: r["attempts"] for r in rows if r["model"] == "none"}
    assert (first[45], first[47]) == (3, 3)


def test_an_environment_that_begins_nothing_any_more_ends_the_evaluation_and_the_command_goes_on(tmp_path, monkeypatch):
    BAD.update(dict.fromkeys(range(46, 60), 10**6))
    with pytest.raises(EnvironmentGoneError, match=f"{NAME}: 5 episodes .* because connection refused"):
        scored(tmp_path, monkeypatch)
    before = recover_jsonl(tmp_path / "evaluation" / "episodes.jsonl")
    assert before and not any(r["lost"] for r in before)
    BAD.clear()
    rows, table = scored(tmp_path, monkeypatch)
    assert rows[: len(before)] == before
    assert len({(r["model"], r["seed"]) for r in rows}) == len(rows) == 40
    assert [arm.held_in.episodes for arm in table.arms] == [20, 20]


def test_a_few_episodes_of_an_environment_that_is_gone_end_with_its_reason_and_are_played_again(tmp_path, monkeypatch):
    BAD.update(dict.fromkeys(range(40, 60), 10**6))
    with pytest.raises(AtlasError, match="every one was lost, the last because .*connection refused"):
        scored(tmp_path, monkeypatch, episodes=3)
    BAD.clear()
    _, table = scored(tmp_path, monkeypatch, episodes=3)
    assert [arm.held_in.episodes for arm in table.arms] == [3, 3]


def test_the_expert_begins_an_episode_again_and_another_takes_the_place_of_one_that_never_begins(tmp_path):
    BAD.update({0: 4, 2: 99})
    made = collect(recipe(collect={"levels": {NAME: 4}}), tmp_path)
    assert [t.seed for t in made] == [0, 1, 3, 4]
    assert [e["seed"] for e in events(tmp_path, "lost episode")] == [0, 0, 2, 2, 2]
    assert events(tmp_path, "dropped")[0]["reasons"] == {"lost 3 times: connection refused": 1}


def test_collecting_ends_soon_where_nothing_begins_any_more_and_goes_on_later(tmp_path):
    BAD.update(dict.fromkeys(range(3, 20), 10**6))
    with pytest.raises(EnvironmentGoneError, match="5 episodes one after the other did not begin"):
        collect(recipe(collect={"levels": {NAME: 9}}), tmp_path)
    BAD.clear()
    again = collect(recipe(collect={"levels": {NAME: 9}}), tmp_path)
    assert [t.seed for t in again] == list(range(9)), "what was lost is tried again"


def test_a_validation_leaves_out_what_does_not_begin_and_ends_where_nothing_does(monkeypatch):
    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.new_agent", lambda self, engine: Fixed(4))
    monkeypatch.setattr("atlas_ray.engines.TransformersEngine", lambda *a, **k: SimpleNamespace(close=lambda: None))
    tuned = recipe(
        collect={"levels": {NAME: 5}},
        select={"selectors": ["all"]},
        finetune={"arms": [{"selector": "all"}], "validation": {"episodes": 10}},
    )
    BAD.update({20: 99, 25: 99})
    assert validation.success(tuned, None, None, ProcessGroup()) == 1.0

    class Replying(Fixed):
        def act(self, *told):
            return [replace(decision, replies={"ok": 1, "asked again": 2}) for decision in super().act(*told)]

    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.new_agent", lambda self, engine: Replying(4))
    replies = Replies()
    assert validation.success(tuned, None, None, ProcessGroup(), replies) == 1.0
    assert replies.row() == {"ok": replies["ok"], "asked again": 2 * replies["ok"]} and replies["ok"] >= 8
    BAD.update(dict.fromkeys(range(20, 40), 10**6))
    with pytest.raises(EnvironmentGoneError):
        validation.success(tuned, None, None, ProcessGroup())


@pytest.mark.parametrize(
    "fault", [broken(500), broken(503), drop, vanish, raw('{"error": "busy"}'), raw("{}", 404), hang]
)
@pytest.mark.parametrize("path", ["create", "reset"])
def test_whatever_a_server_does_as_an_episode_begins_the_others_are_played(serve, fault, path):
    server = serve("textcraft")
    options = {"url": server.url, "timeout": 0.3 if fault is hang else 20.0, "retries": 0}
    spec, begun = EnvSpec("AgentGym/textcraft", options), EpisodeStarter()

    def starts():
        for seed in range(6):
            if seed == 2:
                envs.drain()  # a session that is kept needs no other
                server.faults[path] = [fault] * 9
            elif seed == 3:
                server.faults[path] = []
            yield [begun.start(spec, seed)]

    class Right(Fixed):
        def act(self, slots, offered, seeds):
            return super().act(slots, [["right"]] * len(slots), seeds)

    finished = {f.start.id[-1]: f for f in rollout(Right(1), starts())}
    assert {seed: (f.lost, f.success) for seed, f in finished.items()} == {
        str(seed): (seed == 2, seed not in (2, 3)) for seed in range(6)
    }, "the third item never ends"
    assert finished["2"].error.startswith("the environment failed: ")
    assert path in finished["2"].error
    assert finished["2"].steps == []
    envs.drain()


def test_a_server_that_comes_back_in_time_loses_nothing(serve, tmp_path):
    server = serve("textcraft")
    spec, begun = EnvSpec("AgentGym/textcraft", {"url": server.url, "retries": 8}), EpisodeStarter()
    assert begun.start(spec, 0).lost is None
    server.kill()
    timer = threading.Timer(0.3, lambda: serve("textcraft", port=server.port))
    timer.start()
    from atlas_ray.envs import agentgym_http

    agentgym_http.FIRST_PAUSE, pause = 0.05, agentgym_http.FIRST_PAUSE
    try:
        assert begun.start(spec, 1).lost is None
    finally:
        agentgym_http.FIRST_PAUSE = pause
        timer.join()
    envs.drain()


def test_an_environment_of_ones_own_that_raises_anything_loses_that_episode_only(monkeypatch):
    begin = dying_env.Doors.begin

    def odd(self, variation):
        if variation == 1:
            raise KeyError("no such level")
        if variation == 2:
            raise ValueError("variation: 2 is not there")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", odd)
    spec, begun = EnvSpec(NAME), EpisodeStarter()
    finished = list(rollout(Fixed(2), ([begun.start(spec, seed)] for seed in range(4))))
    assert sorted((f.start.id[-1], f.error) for f in finished if f.lost) == [
        ("1", "the environment failed: KeyError: 'no such level'"),
        ("2", "the environment failed: variation: 2 is not there"),
    ]
    assert sum(f.success for f in finished) == 2


def test_what_cannot_run_here_at_all_is_said_at_once(monkeypatch):
    with pytest.raises(envs.MissingExtraError, match="AGENTGYM_MAZE_URL"):
        EpisodeStarter().start(EnvSpec("AgentGym/maze"), 0)


# ---- the switch ----


def switched(seeds, absorb_env_deaths=True):
    """Rows of episodes in which the expert plays as both models, by the number of the episode."""
    players = [ExpertPlayer(4), ExpertPlayer(4)]
    rows = rollout_policy(Always(0), players, [EnvSpec(NAME)], seeds, absorb_env_deaths=absorb_env_deaths)
    return {row["seed"]: row for row in rows}


@pytest.mark.parametrize(("fault", "where"), [(BAD, "connection refused"), (dying_env.DEATHS, "the process is gone")])
@pytest.mark.parametrize(("times", "attempts", "lost"), [(2, 1, False), (3, 2, False), (6, 3, False), (99, 3, True)])
def test_the_switch_plays_a_lost_episode_again_and_leaves_out_what_stays_lost(fault, where, times, attempts, lost):
    whole = switched(range(8))
    fault[5] = times
    rows = switched(range(8))
    assert (rows[5].get("attempts", 1), rows[5]["lost"]) == (attempts, lost)
    for seed in range(8):
        if seed != 5 or not lost:
            own = {"attempts": 1, "lost_attempts": None, "seconds": 0}
            assert {**rows[seed], **own} == {**whole[seed], **own}
    if lost:
        assert (rows[5]["error"], rows[5]["lost_by"]) == (f"the environment failed: {where}", -1)
        assert sorted(r["seed"] for r in lost_out(list(rows.values()), "x")) == [0, 1, 2, 3, 4, 6, 7]


def test_an_environment_that_is_gone_ends_the_switch_with_its_reason():
    BAD.update(dict.fromkeys(range(2, 60), 10**6))
    with pytest.raises(EnvironmentGoneError, match="because connection refused"):
        switched(range(40))


def test_a_death_in_a_replay_counts_like_any_other(monkeypatch):
    whole = switched([2])
    dying_env.DEATHS[2] = 1
    begin, begun = dying_env.Doors.begin, []

    def failing(self, variation):
        begun.append(variation)
        if 2 <= len(begun) <= 4:  # the three attempts of the replay
            raise envs.EnvironmentDiedError("connection refused")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    assert switched([2])[2]["steps"] == whole[2]["steps"]
    assert len(begun) == 5


def test_a_switch_learns_nothing_of_an_episode_that_did_not_begin():
    BAD[1] = 99
    game = TextGame(
        [EnvSpec(NAME)], [ExpertPlayer(2), ExpertPlayer(2)], 2, make_encoder("hashing", 32), absorb_env_deaths=True
    )
    env = SwitchingVectorEnv(game, 0)
    env.reset()
    _, rewards, ended, cut, info = env.step(np.zeros(2, np.int64))
    assert (rewards[1], ended[1], cut[1]) == (0.0, False, True)
    assert info["lost"].tolist() == [None, "the environment failed: connection refused"]
    env.step(np.zeros(2, np.int64))
    assert game.episodes[1].seed == 2
    plain = TextGame([EnvSpec(NAME)], [ExpertPlayer(1), ExpertPlayer(1)], 1)
    for _ in range(2):
        with pytest.raises(envs.EnvironmentDiedError, match="connection refused"):
            plain.begin(0, 1)
    plain.begin(0, 0)


# ---- why there is no expert episode ----


class Stuck(dying_env.Doors):
    """Its expert gives up, is slow, or does not get there, by variation."""

    def expert(self, cpu_seconds=2.0):
        kind = self.why(self.variation)
        if kind == "gave up":
            raise envs.ExpertGaveUpError(f"no plan for door {self.variation}")
        if kind == "too slow":
            raise envs.ExpertTooSlowError(f"the bot found no action within {cpu_seconds:g} s of CPU time")
        return envs.GoldPath(["go forward"] * 200 if kind == "limit" else ["turn left"] * 9)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        (lambda v: "gave up", r"20 times no plan for door 0. To go on, leave this environment out"),
        (
            lambda v: "too slow",
            r"20 times the bot found no action within 2 s of CPU time. To go on, raise collect.cpu_sec",
        ),
        (lambda v: "limit", r"20 times not solved in 100 steps, the limit: see .*To go on, raise collect.max_steps"),
        (
            lambda v: "limit" if v < 12 else "gave up",
            r"12 times not solved in 100 .*; 8 times no plan for door 12. To go",
        ),
    ],
)
def test_the_reasons_of_the_expert_are_counted_and_the_advice_fits_them(tmp_path, monkeypatch, why, said):
    monkeypatch.setattr(dying_env.Doors, "expert", Stuck.expert)
    monkeypatch.setattr(dying_env.Doors, "why", staticmethod(why), raising=False)
    with pytest.raises(AtlasError, match=rf"the expert solved 0 of 20 episodes .* The others: {said}"):
        collect(recipe(collect={"levels": {NAME: 3}}), tmp_path)


def test_the_assertion_of_the_babyai_bot_is_in_the_message(tmp_path):
    with pytest.raises(AtlasError) as caught:
        collect(recipe(collect={"levels": {"KeyInBox": 1}, "cpu_seconds": 0.3}), tmp_path)
    said = str(caught.value)
    assert "the expert solved 0 of 105 episodes of KeyInBox" in said
    assert "105 times the bot failed: AssertionError: assert " in said
    assert "baby_ai_bot.py" in said
    assert "leave this environment out" in said
    assert "collect.max_steps" not in said


def test_a_limit_of_steps_that_is_too_low_is_what_the_message_says(tmp_path, capsys):
    tight = recipe(collect={"levels": {"PutNextLocalS5N3": 2}, "max_steps": 1})
    with pytest.raises(AtlasError, match=r"not solved in 1 steps, the limit: .* To go on, raise collect.max_steps"):
        collect(tight, tmp_path)
    some = recipe(collect={"levels": {"GoToLocalS5N2": 4}, "max_steps": 3})
    collect(some, tmp_path / "some")
    assert "were not solved, others took their place (" in capsys.readouterr().out
    (event,) = events(tmp_path / "some", "dropped")
    assert sum(event["reasons"].values()) == event["episodes"]


def test_an_old_part_of_a_collection_is_gone_on_with(tmp_path):
    whole = collect(recipe(collect={"levels": {NAME: 4}}), tmp_path / "whole")
    part = tmp_path / "run" / "trajectories" / ".expert.part.jsonl"
    part.parent.mkdir(parents=True)
    rows = [{"env": NAME, "seed": 0, "trajectory": None, "why": "lost 3 times: gone", "deaths": ["gone"] * 3}]
    rows += [{"env": NAME, "seed": 1, "trajectory": whole[1].row(), "why": None, "deaths": []}]
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [t.seed for t in collect(recipe(collect={"levels": {NAME: 4}}), tmp_path / "run")] == [1, 2, 3, 4]


def test_an_environment_without_an_expert_is_refused_before_anything_is_collected():
    with pytest.raises(InputError, match="collect.levels.AgentGymBabyAI/babyai: .*has no expert: read its traj"):
        preflight.check(recipe(collect={"levels": {"AgentGymBabyAI/babyai": 1}}))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"timeout": "30"}, "timeout: '30' is a str, it must be float"),
        ({"retries": 1.5}, "retries: 1.5 is a float"),
        ({"retries": True}, "retries: True is a bool"),
        ({"items": 0}, "items is 0, it must be at least 1"),
        ({"url": 7}, "url: 7 is a int"),
        ({"url": "localhost:3000"}, "url: must be http"),
    ],
)
def test_settings_of_a_wrong_type_are_refused_before_anything_starts(settings, said):
    named = {"url": "http://127.0.0.1:1", **settings}
    switch = {
        "levels": ["AgentGym/maze"],
        "models": [{"model": "tiny-quick"}, {"model": "tiny-deepthink"}],
        "costs": [0.1],
    }
    made = recipe(environments={"AgentGym/maze": named}, switch=switch)
    with pytest.raises(InputError, match=said):
        preflight.check(made)
    with pytest.raises(ValueError, match=said):
        envs.make("AgentGym/maze", **named)


def test_settings_are_taken_as_a_recipe_may_write_them():
    assert envs.make("AgentGym/maze", url="http://127.0.0.1:1", timeout=3, items=5).variations("maze", None) == range(5)
