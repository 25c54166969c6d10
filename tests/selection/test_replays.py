"""Trajectories from files: replayed where their environment and seed are known, left out with the reason elsewhere."""

import json
import sys

import dying_env
import pytest
from agentgym_server import Fake, quick, serving  # noqa: F401

from atlas_ray import envs
from atlas_ray.agents.rollout import EnvSpec, EpisodeStarter, start_episode
from atlas_ray.errors import AtlasError, EnvironmentGoneError, InputError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.deviation_stage import by_deviation
from atlas_ray.selection.replays import replay_all, replay_specs, replayed, rewarded
from atlas_ray.selection.scored_stage import by_value, saved_scores, step_scores
from atlas_ray.selection.start_after import start_after
from atlas_ray.stages.collect import collect
from atlas_ray.trajectory import Annotation, Step, Trajectory, write_trajectories
from tests.agents.test_rollout import Fixed

NAME = "dying_env:Dying/Doors-v0"


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    dying_env.DEATHS.clear()
    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.agent", lambda self, kept: Fixed(4))
    yield
    dying_env.DEATHS.clear()


def recipe(collects, **more):
    select = {"selectors": ["value"], "rollouts": 2, "horizon": 5, "start_after": ["value"]}
    return Recipe.model_validate(
        {"name": "x", "workers": 0, "num_envs": 4, "collect": collects, "select": select} | more
    )


def from_file(tmp_path, trajectories=None, **more):
    path = tmp_path / "theirs.jsonl"
    if trajectories is not None:
        write_trajectories(path, trajectories)
    return recipe({"file": str(path)}, **more)


def events(run_dir, event):
    return [row for row in recover_jsonl(run_dir / "events.jsonl") if row["event"] == event]


@pytest.mark.parametrize("levels", [{NAME: 3}, {"GoToLocalS5N2": 3}, {NAME: 2, "PickupDist": 2}])
def test_what_was_collected_has_the_same_values_when_it_comes_from_a_file(tmp_path, levels):
    own = recipe({"levels": levels})
    made = collect(own, tmp_path / "own")
    theirs = from_file(tmp_path, made)
    read = collect(theirs, tmp_path / "theirs")
    assert by_value(theirs, tmp_path / "theirs", read) == by_value(own, tmp_path / "own", made)
    assert saved_scores(tmp_path / "theirs", "value") == saved_scores(tmp_path / "own", "value")
    assert step_scores(tmp_path / "theirs", "value", read) == step_scores(tmp_path / "own", "value", made)
    marks = {"value": [Annotation(trajectory_id=t.id, selector="value", fraction=1.0, critical=(0,)) for t in made]}
    assert start_after(theirs, tmp_path / "theirs", read, marks) == start_after(own, tmp_path / "own", made, marks)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_file_does_not_tell_the_split_and_the_one_that_agrees_is_taken(tmp_path, split):
    env = envs.make(NAME, split=split)
    shown = [env.reset(seed=7)[0], env.step("turn left")[0]]
    steps = tuple(Step(observation=text, action="turn left", reward=0.0) for text in shown)
    made = Trajectory(
        id="a", env=NAME, task="t", seed=7, instruction="x", steps=steps, score=1.0, success=True, source="s"
    )
    specs, problems = replay_specs(from_file(tmp_path), [made])
    assert problems == {}
    replay = replayed(made, specs)
    assert replay.states[1].clone().step("turn left")[0].startswith(f"room {env.variation}, turned 2")


def test_the_environment_gives_the_rewards_where_a_file_says_nothing_of_them(tmp_path):
    (made,) = collect(recipe({"levels": {NAME: 1}}), tmp_path / "own")
    silent = rewarded(made, [0.0] * len(made.steps))
    theirs = from_file(tmp_path, [silent])
    (note,) = by_value(theirs, tmp_path / "run", [silent])
    (row,) = recover_jsonl(tmp_path / "run" / "annotations" / "scores" / "value.jsonl")
    assert row["rewards"] == [s.reward for s in made.steps]
    assert step_scores(tmp_path / "run", "value", [silent]) == {made.id: [0.0, 0.0]}, "the model does as well"
    assert note.reasons == {0: "value 1.00 -> 1.00"}


def test_what_cannot_be_replayed_is_left_out_and_counted_with_the_reason(tmp_path, capsys):
    made = collect(recipe({"levels": {NAME: 4}}), tmp_path / "own")
    last = made[3].steps[-1]
    others = {
        "another way": made[0].model_copy(update={"seed": 1}),
        "nowhere": made[0].model_copy(update={"env": "Nowhere/Land-v0"}),
        "no server": made[0].model_copy(update={"env": "AgentGym/maze-v0"}),
        "longer": made[3].model_copy(update={"steps": (*made[3].steps, last)}),
        "no level": made[1].model_copy(update={"env": "BabyAIText/GoToNowhere-v0"}),
        **{f"below {n}": made[1].model_copy(update={"seed": -n}) for n in range(1, 7)},
        "unread": made[1].model_copy(update={"env": "unread_module:Un/Read-v0"}),
    }
    mixed = [*made, *(t.model_copy(update={"id": name}) for name, t in others.items())]
    theirs = from_file(tmp_path, mixed)
    notes = by_value(theirs, tmp_path / "run", mixed)
    assert [n.trajectory_id for n in notes] == [t.id for t in made], "never valued"
    said = capsys.readouterr().out
    assert "12 of 16" in said and "6 times Seed must be" in said
    why = {e["trajectory"]: e["why"] for e in events(tmp_path / "run", "left out")}
    assert list(sorted(why)) == sorted(others)
    assert "shows another observation" in why["another way"]
    assert "no environment named 'Nowhere/Land-v0'" in why["nowhere"]
    assert "AGENTGYM_MAZE_URL" in why["no server"]
    assert "2 of its 3 steps" in why["longer"]
    assert "no BabyAI level" in why["no level"]
    assert "name 'unread_module:Un/Read-v0' in [environments]" in why["unread"]
    assert "unread_module" not in sys.modules


def test_a_longer_limit_is_the_recipes_to_give(tmp_path):
    made = collect(recipe({"levels": {NAME: 1}}), tmp_path / "own")
    short = recipe({"file": "x", "max_steps": 1})
    found, left_out = replay_all(made, replay_specs(short, made)[0], start_episode)
    assert (found, left_out) == (
        {},
        {made[0].id: "is over after 1 of its 2 steps here (collect.max_steps raises the limit)"},
    )


@pytest.mark.parametrize("seed", [1, 3, -9])
def test_if_none_can_be_replayed_the_file_is_bad_input_and_the_error_says_why(tmp_path, seed):
    made = [
        t.model_copy(update={"seed": seed + t.seed}) for t in collect(recipe({"levels": {NAME: 3}}), tmp_path / "o")
    ]
    theirs = from_file(tmp_path, made)
    why = "none of 3 .*3 times step 0" if seed > 0 else "none of 3 "
    marks = {"value": [Annotation(trajectory_id=t.id, selector="value", fraction=1.0, critical=(0,)) for t in made]}
    for play in (by_value, by_deviation, lambda *given: start_after(*given, marks)):
        with pytest.raises(InputError, match=why) as raised:
            play(theirs, tmp_path / "run", made)
        assert raised.value.exit_code == 2 and str(raised.value).startswith(f"{tmp_path / 'theirs.jsonl'}: ")
        assert "\n" not in str(raised.value)


def test_if_all_are_lost_to_their_environment_the_file_is_not_blamed(tmp_path, monkeypatch):
    made = collect(recipe({"levels": {NAME: 3}}), tmp_path / "o")
    theirs, begin, dead = from_file(tmp_path, made), dying_env.Doors.begin, {made[0].seed}

    def failing(self, variation):
        if variation in dead:
            raise envs.EnvironmentDiedError("the server is down")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    wrong = [made[0], *(t.model_copy(update={"seed": t.seed + 1}) for t in made[1:])]
    for play in (by_value, by_deviation):
        with pytest.raises(AtlasError, match="none of 3 .*the server is down") as raised:
            play(theirs, tmp_path / "run", wrong)
        assert raised.value.exit_code == 1 and not isinstance(raised.value, InputError)


def agenttraj(server, items):
    """Records as in AgentTraj-L of what the server shows when one goes right."""
    env = envs.make("AgentGym/textcraft", url=server.url)
    records = []
    for item in items:
        text, _ = env.reset(seed=item)
        turns = [("human", "Craft things."), ("gpt", "OK. I'll follow your instructions.")]
        for _ in range(3):
            turns += [("human", f"{text}\n"), ("gpt", "Thought:\nOn.\n\nAction:\nright")]
            text = env.step("right")[0]
        conversations = [{"from": who, "loss": None, "value": value} for who, value in turns]
        records.append({"conversations": conversations, "item_id": f"textcraft_{item}"})
    env.close()
    return records


class Righteous(Fixed):
    def act(self, slots, offered, seeds):
        return super().act(slots, [["right"] for _ in offered], seeds)


def test_agenttraj_is_replayed_on_a_server_that_the_recipe_names(tmp_path, serve, monkeypatch):
    monkeypatch.setattr("atlas_ray.agents.spec.AgentSpec.agent", lambda self, kept: Righteous(2))
    server = serve("textcraft")
    records = agenttraj(server, (4, 17))
    records[1]["item_id"] = "textcraft_18"
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    here = from_file(tmp_path, environments={"AgentGym/textcraft": {"url": server.url}})
    read = collect(here, tmp_path / "run")
    assert [(t.env, t.seed) for t in read] == [("AgentGym/textcraft-v0", 4), ("AgentGym/textcraft-v0", 18)]
    (note,) = by_value(here, tmp_path / "run", read)
    assert note.trajectory_id == "textcraft_4"
    assert saved_scores(tmp_path / "run", "value") == {"textcraft_4": [1.0, 1.0, 1.0, 0.0]}
    (event,) = events(tmp_path / "run", "left out")
    assert event["trajectory"] == "textcraft_18"
    nowhere = from_file(tmp_path)
    with pytest.raises(AtlasError, match=r"none of 2 .*AGENTGYM_TEXTCRAFT_URL"):
        by_value(nowhere, tmp_path / "other", read)


def test_a_server_that_is_gone_ends_the_replays_with_its_reason(tmp_path):
    server = Fake("textcraft")
    records = agenttraj(server, range(8))
    server.kill()
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    here = from_file(tmp_path, environments={"AgentGym/textcraft": {"url": server.url, "retries": 0}})
    read = collect(here, tmp_path / "run")
    with pytest.raises(EnvironmentGoneError, match=r"AgentGym/textcraft-v0: 5 episodes .* no connection"):
        by_value(here, tmp_path / "run", read)


def test_a_roll_out_whose_environment_cannot_be_brought_there_is_left_out_of_the_mean(tmp_path, monkeypatch):
    monkeypatch.setattr(dying_env.Doors, "cheap_clone", False)
    own = recipe({"levels": {NAME: 1}})
    made = collect(own, tmp_path / "own")
    begin, dead = dying_env.Doors.begin, []

    def failing(self, variation):
        dead.append(variation)
        if 2 < len(dead) <= 5:
            raise envs.EnvironmentDiedError("no more sessions")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    dead += [0]
    (note,) = by_value(own, tmp_path / "own", made)
    assert saved_scores(tmp_path / "own", "value") == {made[0].id: [1.0, 1.0, 0.0]}
    assert any("no more sessions" in e["why"] for e in events(tmp_path / "own", "dropped"))
    assert note.critical


def test_beginnings_count_different_episodes_one_after_the_other(monkeypatch):
    tried, bad = [], set()
    begin = dying_env.Doors.begin

    def failing(self, variation):
        tried.append(variation)
        if variation in bad:
            raise envs.EnvironmentDiedError("the server is down")
        return begin(self, variation)

    monkeypatch.setattr(dying_env.Doors, "begin", failing)
    spec, begun = EnvSpec(NAME), EpisodeStarter()
    bad |= set(range(10))
    for seed in (0, 0, 0, 1, 1, 2, 3):
        assert begun.start(spec, seed).lost == "the server is down"
    assert tried == [0, 0, 0, 0, 0, 1, 1, 2, 3], "three attempts, then one while nothing begins"
    assert begun.start(spec, 11).lost is None
    for seed in (4, 5, 6, 7):
        assert begun.start(spec, seed).lost
    with pytest.raises(EnvironmentGoneError, match=f"{NAME}: 5 episodes .* because the server is down"):
        begun.start(spec, 8)
