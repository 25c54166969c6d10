"""The oracle of the select stage: what is asked, asked again, kept and counted, whatever an endpoint answers."""

import chat_server
import oracle_script
import pytest

from atlas_ray import pipeline
from atlas_ray.cli import main
from atlas_ray.data.results import load_results
from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import AtlasError, EndpointError
from atlas_ray.recipe.loading import Recipe
from atlas_ray.rundir.files import recover_jsonl
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.trajectory import max_critical_steps, read_annotations, read_trajectories


def annotated(run_dir, selector):
    trajectories = read_trajectories(run_dir / "trajectories" / "expert.jsonl")
    return {a.trajectory_id: a for a in read_annotations(run_dir / "annotations" / f"{selector}.jsonl", trajectories)}


@pytest.fixture
def server():
    made = chat_server.ChatServer(oracle_script.good)
    yield made
    made.kill()


def asking(recipe, server, **more):
    oracle = {"base_url": server.url, "model": "m", "key_variable": None, "retries": 0, "batch": 2, **more}
    select = {"selectors": ["oracle", "non-critical", "all"], "rest_of": "oracle", "oracle": oracle}
    return Recipe.model_validate(recipe.model_dump() | {"select": select})


def test_an_endpoint_marks_and_is_asked_once(recipe, server, tmp_path, capsys, collected):
    own, run_dir = asking(recipe, server, price_prompt=1e6), tmp_path / "run"
    trajectories = collected(own, run_dir)
    pipeline.run(own, run_dir, ("select",))
    for t in trajectories:
        found = annotated(run_dir, "oracle")[t.id]
        assert len(found.critical) == max_critical_steps(0.3, len(t.steps))
        assert set(found.categories.values()) == {"critical action"} and found.model == "m" and found.prompt_sha256
        assert not set(annotated(run_dir, "non-critical")[t.id].critical) & set(found.critical)
    assert len(server.requests) == len(trajectories)
    assert "12 requests" in (said := capsys.readouterr().out)
    assert "120.00" in said, "10 tokens a prompt, as the server counts"
    for name in ("oracle.jsonl", "scores/oracle.jsonl"):
        (run_dir / "annotations" / name).unlink()
    before = len(server.requests)
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == before, "all of it is in the cache"


def test_what_an_endpoint_never_answers_well_stays_unannotated_and_is_counted(
    recipe, server, tmp_path, capsys, collected
):
    own, run_dir = asking(recipe, server, max_reprompts=1), tmp_path / "run"
    trajectories = collected(own, run_dir)
    victim = trajectories[3].instruction
    fooled = [t.id for t in trajectories if t.instruction == victim]
    server.script = lambda body: "Sure!" if victim in body["messages"][1]["content"] else oracle_script.good(body)
    pipeline.run(own, run_dir, ("select",))
    assert set(annotated(run_dir, "oracle")) == {t.id for t in trajectories} - set(fooled)
    assert len(server.requests) == len(trajectories) + len(fooled)
    said = capsys.readouterr().out
    assert f"{len(fooled)} of 12" in said
    assert f"{2 * len(fooled)} not JSON" in said
    events = recover_jsonl(run_dir / "events.jsonl")
    assert sorted(e["trajectory"] for e in events if e["event"] == "unannotated") == sorted(fooled)


def test_what_became_of_the_replies_is_whole_after_a_resume_and_in_results_and_report(
    recipe, server, tmp_path, collected
):
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
    with pytest.raises(EndpointError, match="2 of 12"):
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


def test_a_dead_endpoint_ends_the_stage_and_the_next_run_asks_for_the_rest(recipe, server, tmp_path, collected):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [None, None, *[chat_server.status(500)] * 3]
    with pytest.raises(EndpointError, match="3 of 12"):
        pipeline.run(own, run_dir, ("select",))
    assert not (run_dir / "annotations" / "oracle.jsonl").exists()
    server.faults, server.requests = [], []
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 3
    assert len(annotated(run_dir, "oracle")) == 12


def test_an_oracle_that_always_answers_alike_is_asked_five_times_and_no_more(
    recipe, server, tmp_path, capsys, collected
):
    own, run_dir = asking(recipe, server, batch=16), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: "Sure! Here it is."
    with pytest.raises(AtlasError, match="5 answers .*not JSON.*Sure! Here it is"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 5
    assert "5 requests" in capsys.readouterr().out, "what was paid is said"
    (told,) = [e for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "answers"]
    assert (told["requests"], told["refused"]) == (5, {"not JSON": 5})
    server.script = oracle_script.good
    pipeline.run(own, run_dir, ("select",))
    assert len(annotated(run_dir, "oracle")) == 12, "none was given up meanwhile"
    assert len(server.requests) == 5 + 12


def test_once_an_answer_was_good_five_trajectories_in_a_row_end_it(recipe, server, tmp_path, collected):
    own, run_dir = asking(recipe, server, batch=1, max_reprompts=1), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: oracle_script.good(body) if len(server.requests) < 3 else "no"
    with pytest.raises(AtlasError, match="5 trajectories in a row"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 2 + 5 * 2
    server.requests, server.script = [], oracle_script.good
    pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 10 and len(annotated(run_dir, "oracle")) == 12


@pytest.mark.parametrize("stop_after", [0, 3])
def test_how_many_it_takes_is_the_recipes(recipe, server, tmp_path, stop_after, collected):
    own, run_dir = asking(recipe, server, stop_after=stop_after), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: "no"
    with pytest.raises(AtlasError, match="3 answers" if stop_after else "of 12"):
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
            "5 of .*max_lost_answers.*20%.*select.oracle.max_tokens = 4096",
        ),
        (FILTERED, "5 of .*max_lost_answers.*20%.*filter"),
    ],
)
def test_answers_that_are_none_end_the_stage_where_they_are_more_than_a_share(
    recipe, server, tmp_path, none, words, collected
):
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


def test_a_few_answers_that_are_none_leave_their_trajectories_unannotated(recipe, server, tmp_path, capsys, collected):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.script = lambda body: FILTERED if len(server.requests) in (3, 7) else oracle_script.good(body)
    pipeline.run(own, run_dir, ("select",))
    assert len(annotated(run_dir, "oracle")) == 10 and len(server.requests) == 12
    assert "2 of 12" in (said := capsys.readouterr().out)
    assert "2 filtered" in said
    assert {
        row.get("reason", "-")[-12:] for row in recover_jsonl(run_dir / "annotations" / "scores" / "oracle.jsonl")
    } > {"-"}


def test_what_the_server_does_not_know_is_said_with_the_result(recipe, server, tmp_path, capsys, collected):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [chat_server.status(400, {"error": "no response_format here"})]
    pipeline.run(own, run_dir, ("select",))
    assert len(annotated(run_dir, "oracle")) == 12 and len(server.requests) == 13
    assert "JSON schema" in capsys.readouterr().out
    (told,) = [e for e in recover_jsonl(run_dir / "events.jsonl") if e["event"] == "left out"]
    assert "send_schema" in told["why"]


def test_a_dead_endpoint_is_given_up_early(recipe, server, tmp_path, collected):
    own, run_dir = asking(recipe, server), tmp_path / "run"
    collected(own, run_dir)
    server.faults = [chat_server.status(500)] * 99
    with pytest.raises(AtlasError, match="5 answers .*endpoint.*HTTP 500"):
        pipeline.run(own, run_dir, ("select",))
    assert len(server.requests) == 5


def test_an_estimate_asks_nothing(recipe, server, tmp_path, capsys, collected):
    run_dir = tmp_path / "run"
    collected(asking(recipe, server), run_dir)
    capsys.readouterr()
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\n[collect]\nlevels = { GoToLocal = 1 }\n[select]\n')
    fields = {"base_url": server.url, "model": "m", "key_variable": "NO_SUCH_KEY", "price_prompt": "1000000.0"}
    options = [part for k, v in fields.items() for part in (f"--select.oracle.{k}", v)]
    assert main(["select", str(path), "--out", str(run_dir), "--estimate", *options]) == 0
    said = capsys.readouterr().out
    assert "12 requests" in said and "prices" in said and server.requests == []
    assert main(["select", str(path), "--out", str(run_dir), "--estimate", "--select.oracle.model", "tiny-quick"]) == 0


def test_a_local_model_is_asked_and_what_it_writes_is_not_believed(recipe, tmp_path, capsys, collected, monkeypatch):
    write = TransformersEngine.generate
    monkeypatch.setattr(
        TransformersEngine, "generate", lambda self, p, slots, stop, most, *how: write(self, p, slots, stop, 30, *how)
    )
    oracle = {"model": "tiny-quick", "context": 2048, "max_tokens": 1000, "max_reprompts": 0, "stop_after": 0}
    own = Recipe.model_validate(recipe.model_dump() | {"select": {"selectors": ["oracle"], "oracle": oracle}})
    collected(own, tmp_path / "run")
    with pytest.raises(AtlasError, match="selector oracle"):
        pipeline.run(own, tmp_path / "run", ("select",))
    assert "12 of 12" in capsys.readouterr().out
