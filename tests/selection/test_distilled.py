"""The selector `distilled`: what is read of a step, what is learnt from whose marks, and what is refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from atlas_ray import pipeline
from atlas_ray.agents.rendering import Renderer
from atlas_ray.cli import main
from atlas_ray.cluster.resources import resource_requests
from atlas_ray.cluster.worker_state import WorkerState
from atlas_ray.data.marked_run import read_marked_run
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import AtlasError, InputError
from atlas_ray.models.encoders import make_encoder
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Collect, Recipe
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.selection import distilled_stage, stage
from atlas_ray.selection.distilled import (
    groups_of,
    model_features,
    parts_of,
    select_by_probability,
    text_features,
    threshold_for,
)
from atlas_ray.selection.ensembles import select_rank_mean
from atlas_ray.selection.turn_pass import turn_passes
from atlas_ray.trajectory import max_critical_steps, read_annotations, write_trajectories
from tests.support.marked_runs import episodes, marked_run, picked, shuffled


@pytest.fixture(scope="module")
def model():
    return build_model(hidden=32, layers=2, heads=2, intermediate=64, seed=1).eval()


def of_model(model, trajectories, micro_tokens=4096, style="react"):
    renderer = Renderer(build_tokenizer(), style)
    passes, problems = turn_passes(model, renderer, trajectories, micro_tokens, 10_000)
    assert problems == []
    return {name: model_features(turns) for name, turns in passes}


@pytest.mark.parametrize("style", ["react", "action"])
def test_what_a_model_reads_of_a_step_is_what_it_has_when_it_acts(model, style):
    trajectories = episodes(4)
    found = of_model(model, trajectories, style=style)
    engine = TransformersEngine(model, slots=1, tokenizer=build_tokenizer())
    renderer = Renderer(engine.tokenizer, style)
    assert groups_of(found["0-0"].shape[1], model=True) == (32, 32, 6, 4)
    for t in trajectories:
        assert found[t.id].shape == (len(t.steps), 74)
        for n, step in enumerate(t.steps):
            prompt, turn = renderer.prompt(t.instruction, t.steps[:n], step.observation), renderer.turn(step)
            before, after = engine.hidden([prompt], [0])[0], engine.hidden([prompt + turn[:-1]], [0])[0]
            assert found[t.id][n, :32] == pytest.approx(before.numpy(), abs=1e-4)
            assert found[t.id][n, 32:64] == pytest.approx(after.numpy(), abs=1e-4)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([prompt + turn])).logits[0, len(prompt) - 1 : -1]
            logp = logits.double().log_softmax(-1)
            own = logp[range(len(turn)), turn].numpy()
            entropy = -(logp.exp() * logp).sum(-1).numpy()
            said = [own.sum(), own.mean(), own.min(), entropy[0], entropy.mean(), entropy.max()]
            assert found[t.id][n, 64:70] == pytest.approx(said, abs=1e-3)
            place = [(n + 1) / len(t.steps), float(n == 0), float(n == len(t.steps) - 1), np.log(len(t.steps))]
            assert found[t.id][n, 70:] == pytest.approx(place)


def test_who_shares_a_pass_changes_nothing(model):
    together, alone = of_model(model, episodes(6)), of_model(model, episodes(6)[::-1], micro_tokens=1)
    assert set(together) == set(alone)
    for name, features in together.items():
        assert features == pytest.approx(alone[name], abs=1e-4)


def test_a_token_of_probability_0_gives_no_nan(model):
    passes, _ = turn_passes(model, Renderer(build_tokenizer()), episodes(1), 4096, 10_000)
    ((_, turns),) = passes
    with torch.inference_mode():
        turns.logits_NV[:, turns.targets_N[0]] = -torch.inf
    found = model_features(turns)
    assert np.isfinite(found).all() and found[0, 66] == -100.0


def test_an_encoder_of_text_reads_observation_and_turn_under_the_goal():
    encoder, (t,) = make_encoder("hashing", 64), episodes(1)
    found = text_features(encoder, t)
    assert groups_of(found.shape[1], model=False) == (64, 64, 4)
    step = t.steps[1]
    assert (found[1, :64] == encoder([f"{t.instruction}\n{step.observation}"])[0]).all()
    assert (found[1, 64:128] == encoder([f"{t.instruction}\n{step.thought}. {step.action}"])[0]).all()


def test_trajectories_are_dealt_out_by_their_ids_and_evenly_by_environment():
    trajectories = episodes(45)
    parts = parts_of(trajectories)
    assert {part: len(each) for part, each in parts.items()} == {"fit": 27, "tune": 9, "test": 9}
    assert sorted(t.id for each in parts.values() for t in each) == sorted(t.id for t in trajectories)
    assert parts == parts_of(trajectories[::-1])
    for each in parts.values():
        assert {env: sum(t.env == env for t in each) for env in ("e1", "e2", "e3")} == dict.fromkeys(
            ("e1", "e2", "e3"), len(each) // 3
        )


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=8),
    st.integers(1, 40),
    st.sampled_from([0.1, 0.3, 1.0]),
    st.integers(0, 9),
)
def test_the_threshold_makes_as_many_marks_as_it_is_asked_for_under_the_cap(lengths, marks, fraction, seed):
    rng = np.random.default_rng(seed)
    trajectories = [t.model_copy(update={"steps": t.steps[:1] * n}) for t, n in zip(episodes(8), lengths, strict=False)]
    told = [rng.permutation(1000)[:n] / 1000 for n in lengths]
    threshold = threshold_for(told, marks, fraction)
    made = [select_by_probability(t, p, fraction, threshold) for t, p in zip(trajectories, told, strict=True)]
    room = sum(max_critical_steps(fraction, n) for n in lengths)
    assert sum(len(a.critical) for a in made) >= min(marks, room), "equal probabilities of two steps may add some"
    assert all(len(a.critical) <= max_critical_steps(fraction, n) for a, n in zip(made, lengths, strict=True))
    values = np.concatenate(told)
    if len(set(values)) == len(values):
        assert sum(len(a.critical) for a in made) == min(marks, room)


def test_the_likeliest_steps_are_marked_and_there_may_be_none():
    (t,) = [t.model_copy(update={"steps": t.steps[:1] * 6}) for t in episodes(1)]
    made = select_by_probability(t, [0.5, 0.9, 0.5, 0.5, 0.1, 0.7], 0.5, 0.5)
    assert made.critical == (0, 1, 5), "the earlier of equal ones"
    assert made.reasons == {0: "probability 0.50", 1: "probability 0.90", 5: "probability 0.70"}
    assert select_by_probability(t, [0.4] * 6, 0.5, 0.5).critical == ()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, a teacher's run, one that marks at random, and other episodes of other environments."""
    folder = tmp_path_factory.mktemp("distilled")
    build_model(hidden=32, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    marked_run(folder / "taught", episodes(90))
    marked_run(folder / "blind", episodes(200, seed=2), shuffled)
    write_trajectories(folder / "own.jsonl", episodes(40, levels=("e8", "e9"), seed=1))
    return folder


def recipe_of(folder, teacher="taught/theirs", encoder="hashing", **select):
    table = {"teacher": str(folder / teacher), "encoder": str(folder / encoder) if encoder == "model" else encoder}
    select = {"selectors": ["distilled"], "distilled": table, **select}
    collect = {"file": str(folder / "own.jsonl")}
    return Recipe.model_validate({"name": "x", "workers": 0, "collect": collect, "select": select})


def made_by(run_dir, selector="distilled"):
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / f"{selector}.jsonl")}


@pytest.fixture(scope="module", params=["hashing", "model"])
def finished(folder, request):
    """A run with each kind of encoder."""
    run_dir = folder / f"whole-{request.param}"
    pipeline.run(recipe_of(folder, encoder=request.param), run_dir, ("collect", "select"))
    return request.param, run_dir


def test_marks_that_follow_from_the_text_are_learnt_and_found_in_other_environments(finished):
    _, run_dir = finished
    told = read_json(run_dir / "annotations" / "distilled" / "head.json")
    quality = told["held_out"]
    assert quality["auc"] > 0.99 and quality["kappa"] > 0.9 and quality["brier"] < quality["brier_of_share"] / 2
    assert quality["kappa_ci95"][0] > 0.8 and quality["calibration_error"] < 0.15
    left_out = told["left_out"]
    assert (quality["trajectories"], left_out["trajectories"]) == (18, 90)
    assert left_out["auc"] > 0.99 and left_out["kappa"] > 0.9, "what is learnt holds for environments left out"
    assert (told["teacher"]["trajectories"], told["teacher"]["levels"]) == (90, ["e1", "e2", "e3"])
    own = episodes(40, levels=("e8", "e9"), seed=1)
    made = made_by(run_dir)
    right = sum(made[t.id].critical == picked(t) for t in own)
    assert list(made) == [t.id for t in own] and right >= 36
    scores = {row["id"]: row["scores"] for row in jsonl_rows(run_dir / "annotations" / "scores" / "distilled.jsonl")}
    for t in own:
        assert len(scores[t.id]) == len(t.steps) and all(0 <= p <= 1 for p in scores[t.id])
        assert made[t.id].reasons == {n: f"probability {scores[t.id][n]:.2f}" for n in made[t.id].critical}


def test_the_log_says_what_reading_took(finished):
    kind, run_dir = finished
    rows = [r for r in jsonl_rows(run_dir / "metrics.jsonl") if r.get("selector") == "distilled"]
    assert [(r["of"], r["read"]) for r in rows if "of" in r] == [("teacher", 90), ("own", 40)]
    assert all((r["flops"] > 2 * r["tokens"] > 0) == (kind == "model") for r in rows if "of" in r)
    assert [r["seconds"] > 0 for r in rows if "seconds" in r] == [True]
    assert not list((run_dir / "annotations" / "scores").glob(".*"))


def test_marks_without_rhyme_teach_nothing_and_break_nothing(folder, tmp_path):
    pipeline.run(recipe_of(folder, "blind/theirs"), tmp_path / "run", ("collect", "select"))
    told = read_json(tmp_path / "run" / "annotations" / "distilled" / "head.json")
    quality = told["held_out"]
    assert abs(quality["kappa"]) < 0.25 and 0.3 < quality["auc"] < 0.7
    assert quality["kappa_ci95"][0] < 0.05 and abs(told["left_out"]["kappa"]) < 0.25
    agreed = sum(
        made.critical == picked(t)
        for t, made in zip(episodes(40, seed=1), made_by(tmp_path / "run").values(), strict=True)
    )
    assert agreed < 20


FILES = ("distilled.jsonl", "scores/distilled.jsonl", "distilled/head.json", "distilled/head.safetensors")


def test_a_run_killed_anywhere_ends_like_one_that_was_not(folder, finished, tmp_path, monkeypatch):
    kind, whole = finished
    run_dir, recipe = tmp_path / "broken", recipe_of(folder, encoder=kind)
    pipeline.run(recipe, run_dir, ("collect",))
    for place, name, calls in (
        (distilled_stage, "save_file", 1),  # while the teacher's episodes are read
        (distilled_stage, "Distiller", 0),  # before the head is fitted
        (distilled_stage, "_about", 0),  # before it is written
        (distilled_stage.ResultFile, "stream", 0),  # before this run's own episodes are read
        (distilled_stage, "select_by_probability", 3),
    ):
        with monkeypatch.context() as patch:
            real, count = getattr(place, name), iter(range(calls))

            def dying(*given, real=real, count=count, **more):
                if next(count, None) is None:
                    raise KeyboardInterrupt
                return real(*given, **more)

            patch.setattr(place, name, dying)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe, run_dir, ("select",))
    with (run_dir / "annotations" / "scores" / "distilled.jsonl").open("a") as file:
        file.write('{"cut')
    pipeline.run(recipe, run_dir, ("select",))
    for name in FILES:
        assert (run_dir / "annotations" / name).read_bytes() == (whole / "annotations" / name).read_bytes(), name
    read = [r["read"] for r in jsonl_rows(run_dir / "metrics.jsonl") if r.get("of")]
    assert read == [90 - 32, 40], "what was read before the kill is not read again"


def test_probabilities_are_ranked_in_ensembles(folder, finished, tmp_path):
    kind, whole = finished
    names = ["distilled", "last", "rank-mean_distilled_last", "random_distilled"]
    recipe = recipe_of(folder, encoder=kind, selectors=names)
    pipeline.run(recipe, tmp_path / "run", ("collect", "select"))
    trajectories = stage.expert_trajectories(tmp_path / "run")
    scores = {r["id"]: r["scores"] for r in jsonl_rows(whole / "annotations" / "scores" / "distilled.jsonl")}
    last = {
        t.id: [float(n in made_by(tmp_path / "run", "last")[t.id].critical) for n in range(len(t.steps))]
        for t in trajectories
    }
    expected = select_rank_mean(trajectories, {"distilled": scores, "last": last}, 0.3)
    assert list(made_by(tmp_path / "run", names[2]).values()) == expected
    drawn = made_by(tmp_path / "run", names[3])
    assert {i: len(a.critical) for i, a in made_by(tmp_path / "run").items()} == {
        i: len(a.critical) for i, a in drawn.items()
    }
    assert stage.fraction_of(recipe, tmp_path / "run", "distilled") == 0.3


def test_trajectories_that_the_head_learnt_from_are_counted(folder, tmp_path, capsys):
    write_trajectories(tmp_path / "mixed.jsonl", [*episodes(90)[:7], *episodes(5, seed=3)])
    recipe = recipe_of(folder)
    recipe = recipe.model_copy(update={"collect": Collect(file=str(tmp_path / "mixed.jsonl"))})
    pipeline.run(recipe, tmp_path / "run", ("collect", "select"))
    assert "7 of 12 trajectories are the teacher's" in capsys.readouterr().out
    (told,) = [e for e in jsonl_rows(tmp_path / "run" / "events.jsonl") if e["event"] == "the teacher's own"]
    assert told["trajectories"] == 7


def test_what_travels_to_actors_arrives_whole(folder):
    recipe = recipe_of(folder, encoder="model")
    (task,) = distilled_stage._Stage(recipe, folder / "none").tasks(episodes(3))
    sent = pickle.loads(pickle.dumps(task))
    assert (sent, sent.key) == (task, task.key)
    (read,) = distilled_stage._read(sent, WorkerState(0))
    arrived = pickle.loads(pickle.dumps(read))
    assert {i: f.tobytes() for i, f in arrived.features.items()} == {i: f.tobytes() for i, f in read.features.items()}
    assert task.key != replace(task, encoder="hashing").key


def test_a_trajectory_of_which_a_model_makes_no_numbers_is_dropped_and_named(folder, monkeypatch):
    (task,) = distilled_stage._Stage(recipe_of(folder, encoder="model"), folder / "none").tasks(episodes(3))
    real = distilled_stage.model_features
    made = iter([np.nan, 1.0, 1.0])
    monkeypatch.setattr(distilled_stage, "model_features", lambda turns: real(turns) * np.float32(next(made)))
    (read,) = distilled_stage._read(task, WorkerState(0))
    assert len(read.features) == 2 and len(read.problems) == 1 and "not finite" in read.problems[0]


def test_it_asks_a_cluster_for_what_perplexity_asks_for(folder):
    recipe = recipe_of(folder, selectors=["distilled", "perplexity"]).model_copy(update={"workers": 3})
    first, second = (r for r in resource_requests(recipe) if r.stage == "select")
    assert (first.part, second.part, first.count) == ("distilled", "perplexity", 3)
    assert replace(first, part="") == replace(second, part="")


def test_a_trajectory_that_the_model_cannot_read_stays_unannotated(folder, tmp_path, capsys):
    renderer = Renderer(build_tokenizer())
    sizes = {t.id: len(renderer.render(t).ids) for t in episodes(40, seed=1)}
    context = sorted(sizes.values())[20]
    build_model(16, 1, 2, 32, seed=0, context=context).save_pretrained(tmp_path / "short")
    build_tokenizer().save_pretrained(tmp_path / "short")
    recipe = recipe_of(folder, encoder=str(tmp_path / "short"))
    pipeline.run(recipe, tmp_path / "run", ("collect", "select"))
    assert list(made_by(tmp_path / "run")) == [name for name, size in sizes.items() if size <= context]
    left = sum(size > context for size in sizes.values())
    assert left
    assert f"{left} trajectories cannot be read" in capsys.readouterr().out
    told = [e for e in jsonl_rows(tmp_path / "run" / "events.jsonl") if e["event"] == "dropped"]
    assert len(told) >= left and all("cannot be read" in e["why"] for e in told)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("", "select: distilled.teacher: name whose marks it learns"),
        ('teacher = "theirs"', "select.distilled.teacher: String should match pattern"),
        ('teacher = "{0}/none/theirs"', "no run with trajectories"),
        ('teacher = "{0}/taught/their"', "did you mean 'theirs'"),
        ('teacher = "{0}/taught/value"', "it has theirs"),
        ('teacher = "{0}/cut/theirs"', "theirs.jsonl:1: select.distilled.teacher: not JSON"),
        ('teacher = "{0}/taught/theirs"\nencoder = "tiny-quik"', "select.distilled.encoder"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_before_anything_runs(folder, tmp_path, capsys, table, says):
    if "cut" in table:
        marked_run(folder / "cut", episodes(5))
        (folder / "cut" / "annotations" / "theirs.jsonl").write_text('{"trajectory_id"')
    path = tmp_path / "r.toml"
    text = f'name = "x"\n[collect]\nfile = "{folder / "own.jsonl"}"\n[select]\nselectors = ["distilled"]\n'
    path.write_text(text + "[select.distilled]\n" + table.format(folder))
    assert main(["run", str(path), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_minilm_is_asked_for_by_its_extra_and_under_its_field(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("atlas_ray.models.encoders.find_spec", lambda name: None)
    with pytest.raises(InputError, match="minilm") as caught:
        pipeline.run(recipe_of(folder, encoder="minilm"), tmp_path / "run", ("collect", "select"))
    assert caught.value.field == "select.distilled.encoder" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("count", "marks"), [(4, picked), (60, lambda t: ()), (60, lambda t: tuple(range(len(t.steps))))]
)
def test_too_few_marks_are_refused_by_the_teachers_field(folder, tmp_path, count, marks):
    marked_run(tmp_path / "few", episodes(count), marks)
    with pytest.raises(InputError, match="more trajectories") as caught:
        pipeline.run(recipe_of(folder, str(tmp_path / "few" / "theirs")), tmp_path / "run", ("collect", "select"))
    assert caught.value.field == "select.distilled.teacher"
    assert not list((tmp_path / "run").glob("annotations/*.jsonl"))


def test_a_teacher_that_marked_a_trajectory_twice_is_refused(folder, tmp_path):
    given = marked_run(tmp_path / "twice", episodes(5))
    path = tmp_path / "twice" / "annotations" / "theirs.jsonl"
    path.write_text(path.read_text() * 2)
    with pytest.raises(InputError, match="two annotations"):
        read_marked_run(given, "x")


def test_a_teacher_none_of_whose_episodes_can_be_read_is_said(folder, tmp_path):
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0, context=20).save_pretrained(tmp_path / "tiny")
    build_tokenizer().save_pretrained(tmp_path / "tiny")
    with pytest.raises(AtlasError, match="none of the 90 episodes of the teacher"):
        pipeline.run(recipe_of(folder, encoder=str(tmp_path / "tiny")), tmp_path / "run", ("collect", "select"))
