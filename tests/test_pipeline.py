"""The ATLaS stages end to end, small but real: Ray actors, real episodes, a random tiny model."""

import json

import pytest
from safetensors.torch import load_file

from atlas_ray import pipeline
from atlas_ray.data.results import load_results
from atlas_ray.errors import InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Recipe, load
from atlas_ray.rundir.files import read_json, recover_jsonl
from atlas_ray.selection.oracle_stage import check_oracle
from atlas_ray.trajectory import max_critical_steps, read_annotations, read_trajectories


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    model = tmp_path_factory.mktemp("model")
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(model)
    build_tokenizer().save_pretrained(model)
    return Recipe.model_validate(
        {
            "name": "small",
            "workers": 1,
            "num_envs": 4,
            "collect": {"levels": {"PickupDist": 5, "GoToLocalS5N2": 4}, "max_steps": 20},
            "select": {"model": str(model), "rollouts": 2, "horizon": 4},
            "finetune": {
                "base": str(model),
                "arms": [{"selector": s} for s in ("all", "random", "non-critical", "value")]
                + [{"selector": "value", "anchor": 0.5}],
                "epochs": 2,
                "batch_size": 4,
                "save_every": 1,
                "workers": 0,
            },
            "evaluate": {"held_in": ["PickupDist"], "held_out": ["GoToObjS4"], "episodes": 3, "max_steps": 5},
        }
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory, ray_session):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    pipeline.run(recipe, run_dir)
    return run_dir


def test_a_run_of_a_version_that_knew_fewer_fields_goes_on(tmp_path):
    table = {"models": [{"model": "m", "base_url": "http://127.0.0.1:9/v1"}, "expert"], "levels": ["GoToLocal"]}
    given = {
        "name": "old",
        "collect": {"levels": {"GoToLocal": 1}},
        "select": {"oracle": {"base_url": "http://127.0.0.1:9/v1", "temperature": None}},
        "switch": {**table, "costs": [0.1]},
    }
    own = Recipe.model_validate(given)
    old = own.model_dump(mode="json")
    for late in ("limit_field", "timeout", "retries", "rate", "extra", "headers", "temperature", "send_system"):
        old["switch"]["models"][0].pop(late)
    old["select"]["oracle"].pop("headers")
    del old["sweep"], old["switch"]["encoder"]
    pipeline.refuse_other(own, old, tmp_path)
    given["switch"]["models"][0]["temperature"] = 0.5
    with pytest.raises(InputError, match="switch.models: .*name another --out"):
        pipeline.refuse_other(Recipe.model_validate(given), old, tmp_path)
    with pytest.raises(InputError, match="novelty"):
        pipeline.refuse_other(own, {**own.model_dump(mode="json"), "novelty": 1}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"select.oracle.max_tokens": "8192", "select.oracle.timeout": "9", "select.oracle.send_schema": "false"},
            None,
        ),
        ({"select.oracle.base_url": "https://elsewhere.org/v1", "select.oracle.key_variable": "OTHER"}, None),
        ({"select.oracle.headers": '{ X-Title = "mine" }', "select.oracle.stop_after": "9"}, None),
        ({"select.oracle.temperature": "0.5"}, "select.oracle.temperature"),
        ({"select.oracle.model": "other"}, "select.oracle.model"),
        ({"select.oracle.extra": '{ reasoning_effort = "low" }'}, "select.oracle.extra.reasoning_effort"),
    ],
)
def test_a_run_goes_on_however_its_endpoints_are_reached(tmp_path, changes, field):
    path = tmp_path / "r.toml"
    text = 'name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select.oracle]\nbase_url = "http://127.0.0.1:9/v1"\n'
    path.write_text(text)
    found = load(path).model_dump(mode="json")
    if field is None:
        pipeline.refuse_other(load(path, changes), found, tmp_path)
        assert found == load(path).model_dump(mode="json")
        return
    with pytest.raises(InputError, match=f"{field}: this run was made with"):
        pipeline.refuse_other(load(path, changes), found, tmp_path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": "ftp://x"}, "select.oracle.base_url: must be http"),
        ({"base_url": "https://a.b/v1", "headers": {"api-key": "$NOT_SET_HERE"}}, "select.oracle.headers.api-key"),
        ({"extra": {"a": 1}}, "select.oracle.extra: is a server's, and base_url is missing"),
        ({"max_tokens": 10}, "select.oracle.max_tokens: must be at least"),
        ({"context": 4000}, "select.oracle.context: must be more than max_tokens"),
    ],
)
def test_an_oracle_that_cannot_be_asked_is_refused_before_anything_is_collected(fields, words):
    given = {"selectors": ["oracle"], "oracle": {"model": "m", **fields}}
    own = Recipe.model_validate({"name": "x", "collect": {"levels": {"GoToLocal": 1}}, "select": given})
    with pytest.raises(InputError, match=words):
        check_oracle(own)
    check_oracle(own.model_copy(update={"select": None}))


def test_every_stage_leaves_what_the_contract_names(recipe, finished):
    trajectories = read_trajectories(finished / "trajectories" / "expert.jsonl")
    assert [t.env for t in trajectories] == ["BabyAIText/PickupDist-v0"] * 5 + ["BabyAIText/GoToLocalS5N2-v0"] * 4
    assert all(t.success and all(s.thought for s in t.steps) for t in trajectories)
    lengths = {t.id: len(t.steps) for t in trajectories}
    marked = {
        s: read_annotations(finished / "annotations" / f"{s}.jsonl", trajectories) for s in recipe.select.selectors
    }
    for selector, annotations in marked.items():
        assert [a.trajectory_id for a in annotations] == list(lengths)
        if selector != "all":
            assert all(len(a.critical) <= max_critical_steps(0.3, lengths[a.trajectory_id]) for a in annotations)
    for critical, rest in zip(marked["value"], marked["non-critical"], strict=True):
        assert critical.critical
        assert not set(critical.critical) & set(rest.critical)
    results = load_results(finished / "results.json")
    assert [a.name for a in results.atlas.arms] == [
        "none",
        "all",
        "random",
        "non-critical",
        "value",
        "value+anchor0.5",
    ]
    assert len({a.held_in.episodes for a in results.atlas.arms}) == 1
    about = [read_json(finished / "checkpoints" / f"{a}-s0" / "run.json") for a in ("all", "random", "value")]
    assert len({a["steps"] for a in about}) == 1
    assert about[0]["trained_tokens"] > about[1]["trained_tokens"]
    assert (finished / "report.html").stat().st_size > 5000


def test_a_second_run_does_nothing_and_says_so(recipe, finished, capsys):
    def written():
        return {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.parent.name != "logs"}

    before = written()
    assert pipeline.run(recipe, finished) == {}
    assert capsys.readouterr().out.count("already done") == 5
    assert written() == before


def test_a_run_killed_in_every_stage_ends_like_one_that_was_not(recipe, finished, tmp_path, monkeypatch):
    """Nor does it matter that the unbroken one played on an actor and this one plays in this process."""
    run_dir = tmp_path / "broken"
    recipe = recipe.model_copy(update={"workers": 0})

    def die_after(module, name, calls, folder=None):
        real, count = getattr(module, name), iter(range(calls))

        def dying(path, *arguments, **more):
            result = real(path, *arguments, **more)
            if folder in (None, getattr(path, "parent", path).name) and next(count, None) is None:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(module, name, dying)

    from atlas_ray.cluster import result_file
    from atlas_ray.finetune import trainer

    for module, name, calls, *folder in (
        (result_file, "append_jsonl", 0, "trajectories"),
        (result_file, "append_jsonl", 0, "scores"),
        (trainer, "save_state", 1),
        (trainer, "save_state", 4),
        (result_file, "append_jsonl", 3, "evaluation"),
    ):
        with monkeypatch.context() as patch:
            monkeypatch = patch
            die_after(module, name, calls, *folder)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe, run_dir)
        for part in run_dir.rglob("*.jsonl"):
            if ".part" in part.name or part.name == "episodes.jsonl" or part.parent.name == "scores":
                with part.open("a") as file:
                    file.write('{"cut": ')
    pipeline.run(recipe, run_dir)
    for name in ("trajectories/expert.jsonl", *(f"annotations/{s}.jsonl" for s in recipe.select.selectors)):
        assert (run_dir / name).read_bytes() == (finished / name).read_bytes()
    for arm in ("all", "random", "non-critical", "value", "value+anchor0.5"):
        old, new = (load_file(d / "checkpoints" / f"{arm}-s0" / "model.safetensors") for d in (finished, run_dir))
        assert all(bool((old[k] == new[k]).all()) for k in old), arm
    episodes = [
        sorted(json.dumps(r, sort_keys=True) for r in recover_jsonl(d / "evaluation" / "episodes.jsonl"))
        for d in (finished, run_dir)
    ]
    assert episodes[0] == episodes[1]
