"""The select stage: every selector by name, in whatever order, killed and started again, compared and tested."""

import chat_server
import oracle_script
import pytest

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.data.results import load_results
from atlas_ray.errors import AtlasError, EndpointError, InputError
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import read_json, recover_jsonl
from atlas_ray.selection import scored_stage as scored
from atlas_ray.selection import stage
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.selection.start_after import _compared, places_of, random_places
from atlas_ray.trajectory import (
    Annotation,
    max_critical_steps,
    read_annotations,
    read_trajectories,
    write_annotations,
    write_trajectories,
)

SELECTORS = [
    "rank-mean_value_perplexity",
    "non-critical",
    "union_value_last",
    "intersection_random_uniform",
    "all",
    "random",
    "uniform",
    "last",
    "mine",
    "perplexity",
    "value",
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of random weights, and annotations of a user's own."""
    folder = tmp_path_factory.mktemp("small")
    build_model(hidden=16, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def recipe(small):
    return Recipe.model_validate(
        {
            "name": "x",
            "workers": 0,
            "num_envs": 8,
            "collect": {"levels": {"PickupDist": 6, "GoToLocalS5N2": 6}, "max_steps": 20},
            "select": {
                "selectors": SELECTORS,
                "files": {"mine": str(small / "mine.jsonl")},
                "rest_of": "union_value_last",
                "model": str(small / "model"),
                "rollouts": 2,
                "horizon": 4,
                "start_after": ["value", "last"],
                "start_after_steps": 6,
            },
        }
    )


def collected(recipe, run_dir):
    pipeline.run(recipe, run_dir, ("collect",))
    return read_trajectories(run_dir / "trajectories" / "expert.jsonl")


@pytest.fixture(scope="module")
def finished(recipe, small, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    trajectories = collected(recipe, run_dir)
    own = [Annotation(trajectory_id=t.id, selector="a colleague", fraction=1.0, critical=(0,)) for t in trajectories]
    write_annotations(small / "mine.jsonl", own)
    pipeline.run(recipe, run_dir, ("select",))
    return run_dir


def marks(run_dir, selector):
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / f"{selector}.jsonl", trajectories)}


def test_every_selector_is_run_under_its_name_whatever_the_order(recipe, finished):
    lengths = {t.id: len(t.steps) for t in read_trajectories(finished / "trajectories" / "expert.jsonl")}
    for selector in SELECTORS:
        found = marks(finished, selector)
        assert list(found) == list(lengths), selector
        assert {a.selector for a in found.values()} == {selector}
        if selector not in ("all", "union_value_last", "mine"):
            assert all(len(a.critical) <= max_critical_steps(0.3, lengths[i]) for i, a in found.items()), selector
    value, last, union, rest = (marks(finished, s) for s in ("value", "last", "union_value_last", "non-critical"))
    for name, steps in lengths.items():
        assert set(union[name].critical) == set(value[name].critical) | set(last[name].critical)
        assert not set(rest[name].critical) & set(union[name].critical)
        assert last[name].critical[-1] == steps - 1
    assert stage.fraction_of(recipe, finished, "mine") == stage.fraction_of(recipe, finished, "all") == 1.0
    assert stage.fraction_of(recipe, finished, "value") == 0.3
    assert stage.fraction_of(recipe, finished, "union_value_last") > 0.3


def test_a_run_killed_in_the_scores_ends_like_one_that_was_not(recipe, finished, tmp_path, monkeypatch):
    from atlas_ray.selection import start_after

    run_dir = tmp_path / "broken"
    collected(recipe, run_dir)
    for module, calls in ((scored, 0), (scored, 1), (start_after, 3)):
        with monkeypatch.context() as patch:
            real, count = module.append_jsonl, iter(range(calls))

            def dying(*arguments, real=real, count=count):
                real(*arguments)
                if next(count, None) is None:
                    raise KeyboardInterrupt

            patch.setattr(module, "append_jsonl", dying)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(recipe, run_dir, ("select",))
        for path in (run_dir / "annotations" / "scores").iterdir():
            with path.open("a") as file:
                file.write('{"cut')
    pipeline.run(recipe, run_dir, ("select",))
    for name in (*(f"{s}.jsonl" for s in SELECTORS), "scores/start-after.json"):
        assert (run_dir / "annotations" / name).read_bytes() == (finished / "annotations" / name).read_bytes(), name


def test_starts_are_behind_the_marks_and_behind_as_many_random_steps(recipe, finished):
    trajectories = read_trajectories(finished / "trajectories" / "expert.jsonl")
    made = {row["selector"]: row for row in read_json(finished / "annotations" / "scores" / "start-after.json")}
    played = {
        (r["id"], r["after"]): r for r in recover_jsonl(finished / "annotations" / "scores" / "start-after.jsonl")
    }
    for selector in ("value", "last"):
        places = places_of(trajectories, marks(finished, selector).values())
        assert made[selector]["starts"] == sum(map(len, places.values()))
        assert all((name, p) in played and (name, -1) in played for name, each in places.items() for p in each)
        assert all(p < len(t.steps) - 1 for t in trajectories for p in places.get(t.id, ()))
        wins = sum(played[n, p]["success"] for n, each in places.items() for p in each)
        assert made[selector]["success"] == wins / made[selector]["starts"]
    for t in trajectories:
        for count in range(1, len(t.steps) - 1):
            drawn = random_places(t, count, 0)
            assert len(set(drawn)) == count and max(drawn) < len(t.steps) - 1
    assert all(r["steps"] <= 6 for r in played.values())


def test_a_difference_that_is_there_has_an_interval_above_0(recipe, finished):
    trajectories = read_trajectories(finished / "trajectories" / "expert.jsonl")
    wanted = {t.id: (1,) for t in trajectories if len(t.steps) > 2}
    drawn = {name: (0,) for name in wanted}
    rows = {(name, p): {"success": p == 1} for name in wanted for p in (-1, 0, 1)}
    found = _compared("value", trajectories, wanted, drawn, rows)
    assert (found["success"], found["random"]["success"], found["ci95"]) == (1.0, 0.0, (1.0, 1.0))
    assert found["place"] > found["random"]["place"] > found["beginning"]["place"] == 0.0
    name = next(iter(wanted))
    del rows[name, 0]
    assert _compared("value", trajectories, wanted, drawn, rows)["trajectories"] == len(wanted) - 1, "pairs only"


@pytest.mark.parametrize("broken", [3, 12])
def test_episodes_from_a_file_are_replayed_and_those_that_cannot_be_are_said_and_not_scored(
    recipe, finished, tmp_path, capsys, broken
):
    theirs = read_trajectories(finished / "trajectories" / "expert.jsonl")
    wrong = [t.model_copy(update={"seed": t.seed + 1}) for t in theirs[:broken]]
    write_trajectories(tmp_path / "theirs.jsonl", wrong + theirs[broken:])
    file = {"collect": {"file": str(tmp_path / "theirs.jsonl")}}
    select = {"select": {"selectors": ["last"], "start_after": ["last"]}}
    own, run_dir = Recipe.model_validate(recipe.model_dump() | file | select), tmp_path / "run"
    if broken == len(theirs):
        with pytest.raises(AtlasError, match="none of .* can be replayed: .* shows another observation"):
            pipeline.run(own, run_dir, ("collect", "select"))
    else:
        pipeline.run(own, run_dir, ("collect", "select"))
        (found,) = read_json(run_dir / "annotations" / "scores" / "start-after.json")
        assert 0 < found["trajectories"] < len(theirs)
        assert "trajectories could not be replayed, left out" in capsys.readouterr().out
    left_out = {e["trajectory"] for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "left out"}
    assert left_out and left_out <= {t.id for t in wrong}


def test_two_selectors_are_compared_from_the_command_line(recipe, finished, tmp_path, capsys):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select]\n')
    assert main(["select", str(path), "--out", str(finished), "--compare", "value", "last"]) == 0
    assert "kappa" in capsys.readouterr().out.lower()
    assert main(["select", str(path), "--out", str(finished), "--compare", "value", "lst"]) == 2
    assert "no annotations by 'lst'; there are all, intersection_random_uniform" in capsys.readouterr().err


def test_annotations_of_the_users_own_are_checked(recipe, finished, small, tmp_path):
    lines = (small / "mine.jsonl").read_text().splitlines()
    run_dir = tmp_path / "run"
    collected(recipe, run_dir)
    bad = tmp_path / "bad.jsonl"
    chosen = recipe.select.model_copy(update={"files": {"mine": str(bad)}, "selectors": ["mine"], "start_after": []})
    own = recipe.model_copy(update={"select": chosen})
    for text, says in (
        (lines[0] + "\n" + lines[0], "has two annotations"),
        (lines[0].replace("[0]", "[77]"), "bad.jsonl:1: critical: step 77"),
        ("", "holds no annotation"),
    ):
        bad.write_text(text)
        with pytest.raises(InputError, match=says):
            stage.select(own, run_dir)
    assert not (run_dir / "annotations").exists() or not list((run_dir / "annotations").glob("*.jsonl"))


def test_an_intersection_of_nothing_is_an_error(recipe, finished, tmp_path):
    run_dir = tmp_path / "run"
    trajectories = collected(recipe, run_dir)
    for name, other in (("first", 0), ("second", 1)):
        own = [
            Annotation(trajectory_id=t.id, selector=name, fraction=1.0, critical=(i % 2,) if i % 2 == other else ())
            for i, t in enumerate(t for t in trajectories if len(t.steps) > 1)
        ]
        write_annotations(tmp_path / f"{name}.jsonl", own)
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("first", "second")}
    select = {"selectors": ["first", "second", "intersection_first_second"], "files": files}
    own = Recipe.model_validate(recipe.model_dump() | {"select": select})
    with pytest.raises(AtlasError, match="intersection_first_second marked no step in any of 12 trajectories"):
        stage.select(own, run_dir)


# --- the oracle ---


@pytest.fixture
def server():
    made = chat_server.ChatServer(oracle_script.good)
    yield made
    made.kill()


def asking(recipe, server, **more):
    oracle = {"base_url": server.url, "model": "m", "key_variable": None, "retries": 0, "batch": 2, **more}
    select = {"selectors": ["oracle", "non-critical", "all"], "rest_of": "oracle", "oracle": oracle}
    return Recipe.model_validate(recipe.model_dump() | {"select": select})


def test_an_endpoint_marks_and_is_asked_once(recipe, server, tmp_path, capsys):
    own, run_dir = asking(recipe, server, price_prompt=1e6), tmp_path / "run"
    trajectories = collected(own, run_dir)
    pipeline.run(own, run_dir, ("select",))
    for t in trajectories:
        found = marks(run_dir, "oracle")[t.id]
        assert len(found.critical) == max_critical_steps(0.3, len(t.steps))
        assert set(found.categories.values()) == {"critical action"} and found.model == "m" and found.prompt_sha256
        assert not set(marks(run_dir, "non-critical")[t.id].critical) & set(found.critical)
    assert len(server.requests) == len(trajectories)
    assert "12 requests, 0 asked again" in (said := capsys.readouterr().out)
    assert "at the given prices 120.00" in said, "10 tokens a prompt, as the server counts"
    for name in ("oracle.jsonl", "scores/oracle.jsonl"):
        (run_dir / "annotations" / name).unlink()
    before = len(server.requests)
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == before, "all of it is in the cache"


def test_what_an_endpoint_never_answers_well_stays_unannotated_and_is_counted(recipe, server, tmp_path, capsys):
    own, run_dir = asking(recipe, server, max_reprompts=1), tmp_path / "run"
    trajectories = collected(own, run_dir)
    victim = trajectories[3].instruction
    fooled = [t.id for t in trajectories if t.instruction == victim]
    server.script = lambda body: "Sure!" if victim in body["messages"][1]["content"] else oracle_script.good(body)
    pipeline.run(own, run_dir, ("select",))
    assert set(marks(run_dir, "oracle")) == {t.id for t in trajectories} - set(fooled)
    assert len(server.requests) == len(trajectories) + len(fooled)
    said = capsys.readouterr().out
    assert f"{len(fooled)} of 12 trajectories stay unannotated" in said
    assert f"refused: {2 * len(fooled)} not JSON" in said
    events = recover_jsonl(run_dir / "events.jsonl")
    assert sorted(e["trajectory"] for e in events if e["event"] == "unannotated") == sorted(fooled)


def test_what_became_of_the_replies_is_whole_after_a_resume_and_in_results_and_report(recipe, server, tmp_path):
    own, run_dir = asking(recipe, server, batch=1), tmp_path / "run"
    scores, seen = run_dir / "annotations" / "scores" / "oracle.jsonl", []
    collected(own, run_dir)

    def script(body):
        record = oracle_script.RECORD.search(body["messages"][1]["content"])[2]
        if record not in seen:
            seen.append(record)
            return {0: "Sure!", 1: chat_server.answer('{"plan"', "length")}.get(len(seen) - 1, oracle_script.good(body))
        return oracle_script.good(body)

    server.script, server.faults = script, [*[None] * 5, *[chat_server.status(500)] * 2]
    with pytest.raises(EndpointError, match="2 of 12 trajectories got no answer"):
        pipeline.run(own, run_dir, ("select",))
    refused = {"not valid": 1, "cut off": 1, "asked again": 2}
    assert replies_of(run_dir) == {"oracle": {"ok": 10, **refused, "lost": 2}}
    pipeline.run(own, run_dir, ("select", "report"))
    whole = {"oracle": {"ok": 12, **refused}}
    assert len(server.requests) == 2 + 12 + 2
    assert replies_of(run_dir) == whole, "lost ones were asked for again"
    told = [e for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "replies"]
    assert [e.get("lost") for e in told] == [2, None]
    assert told[-1] == {"stage": "select", "event": "replies", "selector": "oracle", **whole["oracle"]}
    results = load_results(run_dir / "results.json")
    assert (results.atlas, results.londi, results.replies) == (None, None, {"select": whole})
    assert "What became of the replies" in (run_dir / "report.html").read_text()

    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:6]))
    (run_dir / "annotations" / "oracle.jsonl").unlink()
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 2 + 12 + 2
    assert replies_of(run_dir) == whole, "an answer from the cache counts like the one that was given"


def test_a_dead_endpoint_ends_the_stage_and_the_next_run_asks_for_the_rest(recipe, server, tmp_path):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [None, None, *[chat_server.status(500)] * 3]
    with pytest.raises(EndpointError, match="3 of 12 trajectories got no answer; the same command asks"):
        pipeline.run(own, run_dir, ("select",))
    assert not (run_dir / "annotations" / "oracle.jsonl").exists()
    server.faults, server.requests = [], []
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 3
    assert len(marks(run_dir, "oracle")) == 12


def test_an_oracle_that_always_answers_alike_is_asked_five_times_and_no_more(recipe, server, tmp_path, capsys):
    own, run_dir = asking(recipe, server, batch=16), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: "Sure! Here it is."
    with pytest.raises(AtlasError, match="5 answers in a row are refused alike, as 'not JSON' .*'Sure! Here it is.'"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 5
    assert "5 requests, 3 asked again" in capsys.readouterr().out, "what was paid is said"
    (told,) = [e for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "answers"]
    assert (told["requests"], told["refused"]) == (5, {"not JSON": 5})
    server.script = oracle_script.good
    pipeline.run(own, run_dir, ("select",))
    assert len(marks(run_dir, "oracle")) == 12, "none was given up meanwhile"
    assert len(server.requests) == 5 + 12


def test_once_an_answer_was_good_five_trajectories_in_a_row_end_it(recipe, server, tmp_path):
    own, run_dir = asking(recipe, server, batch=1, max_reprompts=1), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: oracle_script.good(body) if len(server.requests) < 3 else "no"
    with pytest.raises(AtlasError, match="5 trajectories in a row are refused alike"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 2 + 5 * 2
    server.requests, server.script = [], oracle_script.good
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 10 and len(marks(run_dir, "oracle")) == 12


@pytest.mark.parametrize("stop_after", [0, 3])
def test_how_many_it_takes_is_the_recipes(recipe, server, tmp_path, stop_after):
    own, run_dir = asking(recipe, server, stop_after=stop_after), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: "no"
    with pytest.raises(AtlasError, match="3 answers in a row" if stop_after else "marked no step in any of 12"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == (stop_after or 3 * 12)


THOUGHT = {
    "choices": [{"finish_reason": "length", "message": {"content": None, "reasoning_content": "hm"}}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 4096},
}
FILTERED = {"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}


@pytest.mark.parametrize(
    ("none", "words"),
    [
        (
            THOUGHT,
            "5 of .*max_lost_answers allows 20%: raise select.oracle.max_tokens.*select.oracle.max_tokens = 4096",
        ),
        (FILTERED, "5 of .*max_lost_answers allows 20%: the server's filter"),
    ],
)
def test_answers_that_are_none_end_the_stage_where_they_are_more_than_a_share(recipe, server, tmp_path, none, words):
    own, run_dir = asking(recipe, server, batch=4), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: (
        none if len(server.requests) % 2 == 0 and len(server.requests) < 11 else oracle_script.good(body)
    )
    with pytest.raises(AtlasError, match=words):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 12, "none was asked again"
    server.requests = [None]
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) > 1, "the same command asks about them again"


def test_a_few_answers_that_are_none_leave_their_trajectories_unannotated(recipe, server, tmp_path, capsys):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: FILTERED if len(server.requests) in (3, 7) else oracle_script.good(body)
    pipeline.run(own, run_dir, ("select",))
    assert len(marks(run_dir, "oracle")) == 10 and len(server.requests) == 12
    assert "2 of 12 trajectories stay unannotated" in (said := capsys.readouterr().out)
    assert "without an answer: 2" in said and "given up: 2 filtered" in said
    assert {
        row.get("reason", "-")[-12:] for row in recover_jsonl(run_dir / "annotations" / "scores" / "oracle.jsonl")
    } > {"-"}


def test_what_the_server_does_not_know_is_said_with_the_result(recipe, server, tmp_path, capsys):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [chat_server.status(400, {"error": "no response_format here"})]
    pipeline.run(own, run_dir, ("select",))
    assert len(marks(run_dir, "oracle")) == 12 and len(server.requests) == 13
    assert "select.oracle: m takes no JSON schema" in capsys.readouterr().out
    (told,) = [e for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "left out"]
    assert "send_schema" in told["why"]


def test_a_dead_endpoint_is_given_up_early(recipe, server, tmp_path):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [chat_server.status(500)] * 99
    with pytest.raises(AtlasError, match="5 answers in a row got none: endpoint .*HTTP 500"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 5


def test_an_estimate_asks_nothing(recipe, server, tmp_path, capsys):
    run_dir = tmp_path / "run"
    collected(asking(recipe, server), run_dir)
    capsys.readouterr()
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select]\n')
    fields = {"base_url": server.url, "model": "m", "key_variable": "NO_SUCH_KEY", "price_prompt": "1000000.0"}
    options = [part for k, v in fields.items() for part in (f"--select.oracle.{k}", v)]
    assert main(["select", str(path), "--out", str(run_dir), "--estimate", *options]) == 0
    said = capsys.readouterr().out
    assert said.startswith("12 trajectories to ask about: 12 requests, 0 from the cache")
    assert "at the given prices" in said and server.requests == []
    assert main(["select", str(path), "--out", str(run_dir), "--estimate", "--select.oracle.model", "tiny-quick"]) == 0


def test_a_local_model_is_asked_and_what_it_writes_is_not_believed(recipe, small, tmp_path, capsys):
    oracle = {
        "model": "tiny-quick",
        "context": 2048,
        "max_tokens": 1000,
        "max_reprompts": 0,
        "batch": 4,
        "stop_after": 0,
    }
    own = Recipe.model_validate(recipe.model_dump() | {"select": {"selectors": ["oracle"], "oracle": oracle}})
    collected(own, tmp_path / "run")
    with pytest.raises(AtlasError, match="the selector oracle marked no step in any of 12 trajectories"):
        pipeline.run(own, tmp_path / "run", ("select",))
    assert "12 of 12 trajectories stay unannotated" in capsys.readouterr().out
