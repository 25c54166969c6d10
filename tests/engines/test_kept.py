"""Engine actors that outlive their pool: which the next takes, and when they end."""

from unittest.mock import Mock, call

import pytest
import ray

from atlas_ray.engines import EnginePool, engines_kept
from atlas_ray.engines.kept import kept_engines
from atlas_ray.engines.reloading import Reloaded
from atlas_ray.recipe.loading import Engine, Recipe
from atlas_ray.switching.players import engine_actors

SETTINGS = Engine(actors=2, gpus=1.0)


@pytest.fixture
def started(monkeypatch):
    """Engine actors in name only: those that were started, and those that were ended."""
    made, ended = [], []

    def spawn(settings, resources, name, rank, sleeps):
        made.append(Mock(rank=rank))
        made[-1].reloaded.remote.return_value = Reloaded(0.001, 1.5)
        made[-1].expected.remote.return_value = [-1.0]
        return made[-1]

    monkeypatch.setattr("atlas_ray.engines.pool.spawn", spawn)
    monkeypatch.setattr(ray, "get", lambda what, timeout: what)
    monkeypatch.setattr(ray, "kill", ended.append)
    return made, ended


def test_a_pool_that_stands_alone_ends_its_actors(started):
    made, ended = started
    with EnginePool(SETTINGS, "a", 2, 4):
        assert ended == []
    assert ended == made and len(made) == 2 and kept_engines() is None


def test_the_next_pool_takes_them_with_other_weights(started, capsys):
    made, ended = started
    with engines_kept(rank=8):
        with EnginePool(SETTINGS, "a", 2, 4):
            pass
        with EnginePool(SETTINGS, "runs/b", 3, 4) as pool:
            assert pool.servers == made and len(made) == 2
        said = capsys.readouterr().out + capsys.readouterr().err
        with EnginePool(SETTINGS, "runs/b", 2, 4):
            pass
        assert ended == []
    assert set(ended) == set(made) and {each.rank for each in made} == {8}
    assert [server.load.remote.call_args_list for server in made] == [
        [call("a", 4), call("runs/b", 8, [-1.0])],
        [call("a", 4), call("runs/b", 4, [-1.0])],
    ], "the third pool asks for nothing new"
    assert [server.expected.remote.call_count for server in made] == [1, 0], "one of them computes what all must give"
    assert "2 engines took the weights of b" in said and "0.001" in said and "1.5" in said


def test_actors_that_were_started_otherwise_end(started):
    made, ended = started
    with engines_kept():
        with EnginePool(SETTINGS, "a", 1, 4):
            pass
        with EnginePool(SETTINGS, "a", 1, 4, {"large": 0.001}) as pool:
            assert pool.servers == made[1:] and ended == made[:1]
        with EnginePool(Engine(actors=1), "a", 1, 4) as pool:
            assert pool.servers == made[2:] and ended == made[:2]


def test_an_error_ends_them(started):
    made, ended = started
    with engines_kept() as kept:
        with pytest.raises(RuntimeError), EnginePool(SETTINGS, "a", 1, 4):
            raise RuntimeError
        assert ended == made and kept.idle == []


def test_one_that_is_lost_meanwhile_starts_again_with_the_new_ones(started, monkeypatch):
    made, _ = started
    killed = []
    monkeypatch.setattr(ray, "kill", lambda server, no_restart=True: killed.append((server, no_restart)))
    with engines_kept():
        with EnginePool(SETTINGS, "a", 2, 4):
            pass

        def lose(what, timeout):
            raise ray.exceptions.GetTimeoutError("no answer")

        monkeypatch.setattr(ray, "get", lose)
        with EnginePool(SETTINGS, "b", 2, 4) as pool:
            assert killed == [(server, False) for server in made]
            assert {lease.model for lease in pool.leases} == {"b"}


def test_of_a_switch_each_model_keeps_its_own_and_quick_gets_what_is_left(started):
    made, _ = started

    def recipe(quick):
        models = [{"model": quick}, {"model": "tiny-deepthink"}]
        switch = {"levels": ["GoToLocal"], "costs": [0.1], "models": models}
        return Recipe.model_validate({"name": "x", "engine": {"actors": 1}, "switch": switch})

    with engines_kept():
        for quick in ("tiny-quick", "runs/1", "runs/2"):
            with engine_actors(recipe(quick)) as leases:
                assert [own[0].model for own in leases] == [quick, "tiny-deepthink"]
                assert [own[0].server for own in leases] == made
    loaded = [[each.args[0] for each in server.load.remote.call_args_list] for server in made]
    assert loaded == [["tiny-quick", "runs/1", "runs/2"], ["tiny-deepthink"]]


@pytest.mark.parametrize(
    ("gpus", "tuning", "stays"),
    [
        (3, {"workers": 1, "parallel": 1}, True),
        (2, {"workers": 1, "parallel": 1}, False),
        (4, {"workers": 1}, True),  # two models side by side
        (3, {"workers": 1}, False),
        (3, {"workers": 0}, False),  # this process has the GPU
    ],
)
def test_they_end_where_trainings_need_their_place(started, monkeypatch, gpus, tuning, stays):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0, "GPU": float(gpus)}}])
    asks = Recipe.model_validate(
        {
            "name": "x",
            "collect": {"levels": {"GoToLocal": 1}},
            "select": {"selectors": ["all", "random"]},
            "finetune": {"arms": [{"selector": "all"}, {"selector": "random"}], **tuning},
        }
    )
    with engines_kept() as kept:
        with EnginePool(SETTINGS, "a", 2, 4):
            pass
        kept.make_room(asks, ("select", "finetune"))
        assert bool(kept.idle) == stays


def test_they_end_where_models_that_score_take_their_place(started):
    tables = {"collect": {"levels": {"GoToLocal": 1}}, "select": {"selectors": ["random", "perplexity"]}}
    asks = Recipe.model_validate({"name": "x", **tables})
    with engines_kept() as kept:
        with EnginePool(SETTINGS, "a", 2, 4):
            pass
        kept.make_room(asks, ("collect",))
        assert len(kept.idle) == 2
        kept.make_room(asks, ("select",))
        assert kept.idle == []


def test_trainings_on_other_nodes_leave_them_their_place(started, monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, name: 1.0}} for name in ("play", "learn")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    tables = {"collect": {"levels": {"GoToLocal": 1}}, "select": {"selectors": ["all"]}}
    tables |= {"finetune": {"arms": [{"selector": "all"}], "workers": 2}}
    for place, stays in ({"trainers": "learn", "engines": "play"}, True), ({"trainers": "learn"}, False):
        asks = Recipe.model_validate({"name": "x", "placement": place, **tables})
        with engines_kept() as kept:
            with EnginePool(SETTINGS, "a", 2, 4):
                pass
            kept.make_room(asks, ("select", "finetune"))
            assert bool(kept.idle) == stays
