"""Collecting with a model in place of the experts: its failures too, what is kept, killed runs, what is refused."""

import pytest
from chat_server import ChatServer
from collecting_runs import collects, finished_run, save_model
from switch_models import LEVELS

from atlas_ray import pipeline
from atlas_ray.agents.rollout import TRAIN, seed_block
from atlas_ray.cluster import result_file
from atlas_ray.data.kept import outcomes_of
from atlas_ray.errors import InputError
from atlas_ray.recipe.collect import Collect
from atlas_ray.recipe.loading import Recipe
from atlas_ray.recipe.of_run import recipe_of
from atlas_ray.report import build_report
from atlas_ray.rundir.files import jsonl_rows, read_json, write_json
from atlas_ray.stages.collect import collect
from atlas_ray.trajectory import read_trajectories


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of random weights: greedy it succeeds hardly ever, at a high temperature now and then."""
    return save_model("quick", tmp_path_factory.mktemp("models"))


def drawn(model, temperature=20.0):
    return {"model": model, "temperature": temperature}


def by(agent, levels=None, tables=None, **collect):
    """A recipe that collects with an agent, in this process."""
    own = {"agent": agent, "levels": levels or dict.fromkeys(LEVELS, 4), "max_steps": 12, **collect}
    given = {"name": "x", "workers": 0, "num_envs": 4, "style": "action", "collect": own}
    return Recipe.model_validate({**given, **(tables or {})})


def refuse_other(recipe, run_dir):
    """Refuse a recipe that would go on with a run of another one."""
    path = run_dir / "recipe.resolved.json"
    pipeline.refuse_other(recipe, read_json(path), path)


def events(run_dir, kind):
    return [row for row in jsonl_rows(run_dir / "events.jsonl") if row["event"] == kind]


def test_a_greedy_agent_plays_as_the_same_model_of_a_run_does_and_its_failures_are_kept(model, tmp_path, capsys):
    run = finished_run(tmp_path / "run", [model, "expert"])
    theirs = collect(collects(run / "always-quick", {LEVELS[0]: 4}, 6, keep="all"), tmp_path / "theirs")
    capsys.readouterr()
    own = collect(by(model, {LEVELS[0]: 4}, max_steps=6), tmp_path / "own")
    assert own == read_trajectories(tmp_path / "own" / "trajectories" / "expert.jsonl")
    assert [(t.id, t.success, t.score, t.instruction) for t in own] == [
        (t.id, t.success, t.score, t.instruction) for t in theirs
    ]
    plain = [[(s.observation, s.action, s.reward) for s in t.steps] for t in own]
    assert plain == [[(s.observation, s.action, s.reward) for s in t.steps] for t in theirs]
    assert {t.source for t in own} == {model} and {(s.actor, s.probability) for t in own for s in t.steps} == {
        (None, None)
    }
    ended = outcomes_of(own)
    assert ended.failures and not ended.unknown
    usage = read_json(tmp_path / "own" / "trajectories" / "usage.json")
    assert (usage["policy"], usage["models"], usage["calls"]) == (model, [model], 0)
    assert (usage["episodes"], usage["kept"], usage["successes"]) == (4, 4, ended.successes)
    assert usage["calls_by_model"] == [usage["steps"]] == [sum(len(t.steps) for t in own)]
    assert usage["tokens"][0] > 0 and usage["flops"] > 0
    assert [
        {k: v for k, v in e.items() if k not in ("stage", "event")} for e in events(tmp_path / "own", "outcomes")
    ] == [ended._asdict()]
    assert ended.words() in capsys.readouterr().out


@pytest.mark.parametrize("keep", ["successes", "failures"])
def test_only_one_kind_is_kept_where_that_is_asked_for(model, tmp_path, keep):
    everything = collect(by(drawn(model), {LEVELS[0]: 12}), tmp_path / "all")
    wanted = [t for t in everything if t.success == (keep == "successes")][:2]
    made = collect(by(drawn(model), {LEVELS[0]: 2}, keep=keep), tmp_path / "x")
    assert made == wanted and len(made) == 2
    usage = read_json(tmp_path / "x" / "trajectories" / "usage.json")
    played = made[-1].seed - seed_block(0, TRAIN) + 1
    assert (usage["episodes"], usage["kept"]) == (played, 2), "no more is played than is needed"
    assert usage["successes"] == sum(t.success for t in everything[:played])


def test_what_is_drawn_depends_on_nothing_but_the_episode_and_a_killed_run_repeats_nothing(
    model, tmp_path, monkeypatch
):
    recipe, real, count = by(drawn(model, 2.0), max_steps=4), result_file.append_jsonl, iter(range(5))
    whole = collect(recipe, tmp_path / "whole")
    greedy = collect(by(model, max_steps=4), tmp_path / "greedy")
    assert [t.id for t in whole] == [t.id for t in greedy] and whole[0].source == f"{model}, temperature 2"
    assert [t.steps for t in whole] != [t.steps for t in greedy]
    written = []
    with monkeypatch.context() as patch:

        def dying(path, rows):
            real(path, rows)
            written.append(rows)
            if next(count, None) is None:
                raise KeyboardInterrupt

        patch.setattr(result_file, "append_jsonl", dying)
        with pytest.raises(KeyboardInterrupt):
            collect(recipe, tmp_path / "killed")
        patch.setattr(result_file, "append_jsonl", lambda path, rows: (real(path, rows), written.append(rows)))
        assert collect(recipe.model_copy(update={"num_envs": 2}), tmp_path / "killed") == whole
    assert len(written) == 8 == len(whole), "no episode was played twice"


def test_a_model_behind_an_endpoint_collects(tmp_path):
    server = ChatServer(lambda body: "Action: go forward")
    try:
        agent = {"model": "m", "base_url": server.url, "key_variable": None, "retries": 0, "temperature": 0.7}
        recipe = by(agent, {LEVELS[0]: 2}, max_steps=3)
        pipeline.run(recipe, tmp_path / "x", ("collect",))
        made = read_trajectories(tmp_path / "x" / "trajectories" / "expert.jsonl")
        assert {s.action for t in made for s in t.steps} == {"go forward"} and made[0].source == "m, temperature 0.7"
        assert server.requests[0][1]["temperature"] == 0.7
        usage = read_json(tmp_path / "x" / "trajectories" / "usage.json")
        assert usage["tokens"] == [12 * len(server.requests)] and usage["replies"]["ok"] == len(server.requests)
        moved = by({**agent, "base_url": "http://elsewhere/v1", "rate": 3}, {LEVELS[0]: 2}, max_steps=3)
        refuse_other(moved, tmp_path / "x")
    finally:
        server.kill()


def test_selectors_report_and_results_say_how_many_of_each(model, tmp_path, capsys):
    select = {"selectors": ["all", "random", "last", "random_last"], "fraction": 0.3}
    recipe = by(drawn(model), {LEVELS[0]: 12}, {"select": select})
    pipeline.run(recipe, tmp_path, ("collect", "select"))
    made = read_trajectories(tmp_path / "trajectories" / "expert.jsonl")
    ended = outcomes_of(made)
    said = capsys.readouterr().out
    assert "all: 100.0% of the steps (100.0% of successes, 100.0% of failures)" in said
    told = {e.pop("selector"): e for e in events(tmp_path, "outcomes") if e["stage"] == "select"}
    assert set(told) == set(select["selectors"])
    for row in told.values():
        assert (row["successes"], row["failures"], row["unknown"]) == ended
    page = build_report(tmp_path).read_text()
    assert f"12 episodes of {LEVELS[0]} played by {model}" in page
    assert "How the collected episodes ended" in page and "unknown outcome" not in page
    assert "Calls are the steps" not in page


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"agent": "m", "file": "x.jsonl", "levels": {}}, "agent: plays levels, and a file is read"),
        ({"agent": "m", "switch": "a/b"}, "agent: plays levels, and a switch does too"),
        ({"agent": "expert"}, "agent: the environments' own experts play without it"),
        ({"agent": "m", "cpu_seconds": 1.0}, "cpu_seconds: is of the environments' experts, and an agent plays"),
        ({"keep": "failures"}, "keep: says what is kept"),
        ({"agent": "m", "keep": "some"}, "keep"),
        ({"agent": {"model": "m", "weight": 1.0}}, "weight"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        Collect.model_validate({"levels": {"GoToLocal": 1}, **table})


@pytest.mark.parametrize(
    ("agent", "field"),
    [
        ({"max_tokens": 9}, "collect.agent.max_tokens"),
        ({"temperature": "unset"}, "collect.agent.temperature"),
        ({"base_url": "nowhere"}, "collect.agent.base_url"),
        ({"model": "no/such/model/at/all"}, "collect.agent.model"),
    ],
)
def test_an_agent_that_cannot_play_is_refused_by_field(model, tmp_path, agent, field):
    with pytest.raises(InputError) as caught:
        pipeline.run(by({"model": model, **agent}), tmp_path / "x", ("collect",))
    assert (caught.value.field, caught.value.exit_code) == (field, 2)
    assert not (tmp_path / "x" / "trajectories").exists()


def test_what_was_kept_by_the_release_before_is_still_read(tmp_path):
    old = {"levels": {"GoToLocal": 1}, "file": None, "switch": None, "keep": "success"}
    assert Collect.model_validate(old).keep == "successes"
    assert Collect.model_validate({**old, "levels": {}, "file": "a"}).keep == "all"
    assert Collect.model_validate({**old, "switch": "a/b"}).keep == "successes"
    assert Collect.model_validate({"file": "a", "keep": "success"}).keep == "successes", "somebody asks for it now"
    assert [Collect.model_validate({**given}).keep for given in ({"file": "a"}, {"levels": {"GoToLocal": 1}})] == [
        "all",
        "successes",
    ]
    recipe = collects("a/b")
    pipeline.open_run(recipe, tmp_path / "run")
    resolved = read_json(tmp_path / "run" / "recipe.resolved.json")
    del resolved["collect"]["agent"]
    write_json(
        tmp_path / "run" / "recipe.resolved.json", resolved | {"collect": resolved["collect"] | {"keep": "success"}}
    )
    refuse_other(recipe, tmp_path / "run")
    assert recipe_of(tmp_path / "run") == recipe
