"""What a recipe is said to ask of a cluster is what the code then asks Ray for."""

from collections import Counter

import pytest
import ray
from collecting_runs import collects, finished_run
from oracle_script import trajectory

import atlas_ray.cluster.workers
import atlas_ray.pipeline
from atlas_ray.cluster.resources import ResourceRequest, by_part, peak_of, player_requests, resource_requests, total_of
from atlas_ray.cluster.workers import ActorPool, set_local_cluster_size, worker_pool
from atlas_ray.engines import EnginePool
from atlas_ray.errors import AtlasError
from atlas_ray.finetune.stage import _fit, _missing
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.selection import oracle_stage as asking
from atlas_ray.selection import scored_stage as scored
from atlas_ray.selection import start_after
from atlas_ray.selection.oracle_task import CRITICAL

PLACES = ("environments", "engines", "trainers")
LARGE = {"workers": 5, "worker_cpus": 0.5, "engine": {"kind": "vllm", "actors": 2, "cpus": 3.0, "gpus": 4.0}}
SELECT = {
    "collect": {"levels": {"GoToLocal": 1}},
    "select": {"selectors": ["value", "perplexity", "random", "oracle"], "rest_of": "value", "start_after": ["value"]},
}


def recipe(**tables):
    places = {"workers": "environments", "engines": "engines", "trainers": "trainers"}
    return Recipe.model_validate({"name": "x", "placement": places, **tables})


class Actors:
    """In place of Ray's actors: what each was to ask for."""

    def __init__(self):
        self.asked = Counter()

    def remote(self, *_):
        return self

    load = property(lambda self: self)

    def options(self, num_cpus, num_gpus, resources, **_):
        (group,) = resources or (None,)
        self.asked[num_cpus, num_gpus, group] += 1
        return self


@pytest.fixture
def cluster(monkeypatch):
    """Ray of any size, and none: nothing may be started."""
    node = {"Alive": True, "Resources": {name: 1000.0 for name in ("CPU", "GPU", *PLACES)}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray, "cluster_resources", lambda: node["Resources"])
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr("ray.util.get_current_placement_group", lambda: None)
    return node["Resources"]


@pytest.fixture
def actors(cluster, monkeypatch):
    """A pool starts all of its actors, of which only this hears, and does nothing."""
    found = Actors()

    def stream(pool, *_):
        for index in range(pool.workers):
            pool._spawn(index)
        return iter(())

    monkeypatch.setattr(ray, "remote", found.remote)
    monkeypatch.setattr(ray, "kill", lambda _: None)
    monkeypatch.setattr(ActorPool, "stream", stream)
    return found


def said(recipe, stage, part):
    return Counter(
        {
            (d.cpus, d.gpus, d.group): d.count
            for s, p, ds in by_part(resource_requests(recipe))
            if (s, p) == (stage, part)
            for d in ds
        }
    )


@pytest.mark.parametrize(
    "tables", [LARGE, {"workers": 3, "engine": {"kind": "vllm", "cpus": 2.0, "gpus": 1.0}}, {"workers": 2}]
)
def test_each_selector_asks_for_what_is_said(actors, tmp_path, monkeypatch, tables):
    monkeypatch.setattr(start_after, "_compared", lambda *_: {"trajectories": 0, "selector": ""})
    monkeypatch.setattr(scored, "check_words", lambda *_: None)
    t = trajectory(env="BabyAIText/GoToLocal-v0")
    asks = recipe(**SELECT, **tables)
    stages = {
        "value": lambda: scored.by_value(asks, tmp_path, [t]),
        "perplexity": lambda: scored.by_base(asks, tmp_path, [], "perplexity"),
        "oracle": lambda: list(asking._from_actors(asks, tmp_path, [], CRITICAL)),
        "start_after": lambda: start_after.start_after(asks, tmp_path, [], {"value": []}),
    }
    assert [part for stage, part, _ in by_part(resource_requests(asks)) if stage == "select"] == list(stages)
    for part, play in stages.items():
        actors.asked.clear()
        play()
        assert actors.asked == said(asks, "select", part), part
        assert actors.asked


def test_models_with_gpus_are_as_many_as_the_recipe_has_engines():
    """Eight workers with four GPUs each would wait for one another on the node that llama-8b is for."""
    for _, _, asked in by_part(resource_requests(load("llama-8b"))):
        assert total_of(asked).gpus <= 4


@pytest.mark.parametrize(("runners", "actors_"), [(0, 2), (2, 2), (2, 0)])
def test_a_switch_asks_for_what_is_said(actors, runners, actors_):
    from atlas_ray.switching.players import engine_actors

    asks = recipe(
        workers=2,
        engine={"actors": actors_, "cpus": 2.0, "gpus": 0.5},
        switch={"levels": ["GoToLocal"], "costs": [0.1], "env_runners": runners},
    )
    models = len(asks.switch.local)
    for part, place in (("episodes", "workers"), ("trainings", "trainers")):
        actors.asked.clear()
        worker_pool(asks, lambda *_: None, models, runners * asks.workers, place).stream()
        with engine_actors(asks, asks.workers * (1 + runners)):
            pass
        started = said(asks, "switch", part)
        if part == "trainings" and runners:
            beside = Counter({(1.0, 0.0, "environments"): runners * asks.workers})
            assert beside <= started
            started -= beside
        assert actors.asked == started


@pytest.mark.parametrize(("policy", "models"), [("switch-cost0.05-seed0", 2), ("always-quick", 1)])
@pytest.mark.parametrize("actors_", [0, 2])
def test_a_switch_that_collects_asks_for_what_is_said(actors, tmp_path, monkeypatch, policy, models, actors_):
    from atlas_ray.stages.collect_switch import _Collecting
    from atlas_ray.stages.first_seeds import FirstSeeds

    run = finished_run(tmp_path / "run", ["tiny-quick", "tiny-deepthink"])
    tables = {"workers": 2, "engine": {"actors": actors_, "cpus": 2.0, "gpus": 0.5}}
    asks = recipe(**collects(run / policy, tables=tables).model_dump(exclude_unset=True, exclude={"name"}))
    rounds = iter([[("GoToLocalS5N2", [0])], []])
    monkeypatch.setattr(FirstSeeds, "wanted", lambda _: next(rounds))
    _Collecting(asks, tmp_path / "x").play()
    assert actors.asked == said(asks, "collect", "episodes")
    assert sum(n for (_, _, group), n in actors.asked.items() if group == "engines") == models * actors_
    assert sum(n for (_, _, group), n in actors.asked.items() if group == "environments") == 2


def test_a_policy_that_is_not_here_is_taken_for_two_models():
    asks = collects("nowhere/always-quick", tables={"workers": 3, "engine": {"actors": 1}})
    (workers, engines) = resource_requests(asks)
    assert (workers.count, engines.count, engines.who) == (3, 2, "engines")


def test_environment_runners_ask_for_a_cpu_each():
    from atlas_ray.switching.algorithm import algorithm_config
    from atlas_ray.switching.policy import SwitchConfig

    asks = recipe(switch={"levels": ["GoToLocal"], "costs": [0.1], "env_runners": 3})
    terms = SwitchConfig(features=8, hidden=8)
    made = algorithm_config("x", None, asks.switch, terms, 0, 0, asks.placement.resource_request("workers"))
    (runners,) = [d for d in player_requests(asks, models=2, runners=3) if d.who == "env-runners"]
    assert made.num_env_runners == runners.count == 3
    assert (made.num_cpus_per_env_runner, made.num_gpus_per_env_runner) == (runners.cpus, runners.gpus)
    assert list(made.custom_resources_per_env_runner) == [runners.group] == ["environments"]


@pytest.mark.parametrize(("parallel", "gpus"), [(2, True), (2, False), (9, True)])
def test_trainers_ask_for_what_is_said(cluster, tmp_path, monkeypatch, parallel, gpus):
    asks = recipe(
        **SELECT,
        finetune={
            "arms": [{"selector": "value"}, {"selector": "random"}],
            "workers": 3,
            "parallel": parallel,
            "seeds": [0, 1],
        },
    )
    seen = []

    class Trainer:
        def __init__(self, *_, scaling_config, **__):
            seen.append(scaling_config)

        def fit(self):
            pass

    if not gpus:
        del cluster["GPU"]
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    monkeypatch.setattr("atlas_ray.finetune.stage.prepare", lambda *_: None)
    monkeypatch.setattr("atlas_ray.finetune.stage._say_unknown", lambda *_: None)
    with pytest.raises(AtlasError, match="no checkpoint"):
        _fit(asks, tmp_path, asks.finetune, _missing(tmp_path, asks.finetune))
    (demand,) = [d for d in resource_requests(asks, gpus) if d.stage == "finetune"]
    (scaling,) = seen
    assert scaling.num_workers == demand.count == 3 * min(parallel, 4)
    each = scaling._resources_per_worker_not_none
    assert (each["CPU"], each.get("GPU", 0)) == (demand.cpus, demand.gpus)
    assert [name for name in each if name not in ("CPU", "GPU")] == [demand.group] == ["trainers"]


def test_as_many_models_as_fit_are_at_least_one():
    asks = recipe(**SELECT, finetune={"arms": [{"selector": "value"}], "workers": 3})
    assert resource_requests(asks)[-1] == ResourceRequest("finetune", "models", "trainers", 3, 1.0, 1.0, "trainers")


def test_what_runs_in_the_driver_asks_for_nothing():
    endpoint = {"selectors": ["oracle", "last"], "oracle": {"base_url": "http://127.0.0.1:1/v1"}}
    in_driver = recipe(
        workers=0,
        **{**SELECT, "select": {"selectors": ["value", "perplexity"]}},
        finetune={"arms": [{"selector": "value"}], "workers": 0},
    )
    assert resource_requests(in_driver) == []
    assert [d.stage for d in resource_requests(recipe(collect={"file": "x.jsonl"}, select=endpoint))] == []


def test_the_most_is_asked_for_at_one_time():
    asks = recipe(**SELECT, **LARGE)
    assert peak_of(resource_requests(asks)).cpus == 5 * 0.5 + 2 * 3
    assert peak_of([]).gpus == 0
    assert total_of(player_requests(asks, models=3)).gpus == 24


def test_ray_on_this_machine_is_told_of_all_cpus_at_a_time_and_of_the_groups(monkeypatch):
    workers, started = atlas_ray.cluster.workers, []
    for name in ("_least_cpus", "_groups"):
        monkeypatch.setattr(workers, name, getattr(workers, name))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(workers.cluster, "start", lambda **options: started.append(options))
    monkeypatch.setattr(workers.ray_private, "take_output", lambda take: None)
    monkeypatch.setattr(workers, "usable_cpus", lambda: 2)
    set_local_cluster_size(recipe(**SELECT, **LARGE))
    workers.ensure_ray(3)
    workers.ensure_ray(12)
    assert [options["num_cpus"] for options in started] == [9, 12]
    assert sorted(started[0]["resources"]) == sorted(PLACES)


def test_the_pipeline_says_how_large_a_ray_of_this_machine_has_to_be(monkeypatch, tmp_path):
    said = []
    monkeypatch.setattr(atlas_ray.pipeline, "set_local_cluster_size", said.append)
    small = Recipe.model_validate({"name": "x", "workers": 0, "collect": {"levels": {"GoToObjS4": 1}}})
    atlas_ray.pipeline.run(small, tmp_path / "run", ("collect",))
    assert said == [small]


def test_no_engine_is_counted_that_has_no_worker(actors):
    asks = recipe(workers=1, engine={"actors": 3})
    with EnginePool(asks.engine, "tiny-quick", 1, 4, {}):
        assert sum(actors.asked.values()) == sum(d.count for d in player_requests(asks) if d.who == "engines") == 1


def test_rounds_ask_for_who_tunes_and_otherwise_for_what_their_switch_asks():
    tables = {"switch": {"levels": ["GoToLocal"], "costs": [0.05]}, "workers": 2}
    alone = resource_requests(recipe(**tables))
    rounds = {"arms": ["calls", "all"], "finetune": {"workers": 2, "parallel": 3}}
    asked = resource_requests(recipe(**tables, rounds=rounds), gpus=False)
    assert asked == [*alone, ResourceRequest("rounds", "models", "trainers", 4, 1.0, 0.0, "trainers")]
    assert resource_requests(recipe(**tables, rounds={"finetune": {"workers": 0}})) == alone
