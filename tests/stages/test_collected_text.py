"""Episodes of two models that write: their text is trained as it was prompted, by whom it may be; replies count."""

import pytest
from chat_server import DOWN, answer, good_server
from collecting_runs import collects, finished_run, save_model
from switch_models import LEVELS

from atlas_ray.agents.rendering import Renderer
from atlas_ray.cli import main
from atlas_ray.errors import AtlasError
from atlas_ray.finetune.data import Examples
from atlas_ray.finetune.store import build_store
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.rundir.files import jsonl_rows, read_json
from atlas_ray.selection.calls import select_calls
from atlas_ray.selection.controls import select_all, select_matched
from atlas_ray.stages.collect import collect
from atlas_ray.switching.text_game import TextGame

SWITCH = "switch-cost0.05-seed0"
server = pytest.fixture(good_server, name="server")


@pytest.fixture
def prompts(monkeypatch):
    """What the model that acts has read, by episode and step."""
    seen, advance = {}, TextGame.advance

    def watched(self, choices):
        for row, number in choices.items():
            if not self.episodes[row].over:
                episode = self.episodes[row]
                seen[episode.id, len(episode.steps)] = list(self.agents[number].prompt(row))
        return advance(self, choices)

    monkeypatch.setattr(TextGame, "advance", watched)
    return seen


@pytest.mark.parametrize(
    ("style", "agent"),
    [
        ("react", {"thought_tokens": 4}),
        ("react", {"decide": "generate", "thought_tokens": 4, "action_tokens": 4}),
        ("action", {}),
    ],
)
def test_the_text_of_two_models_is_trained_behind_the_prompts_that_they_acted_on(tmp_path, prompts, style, agent):
    models = [save_model("quick", tmp_path), save_model("deepthink", tmp_path)]
    run = finished_run(tmp_path / "run", models, max_steps=6, style=style, agent=agent)
    made = collect(collects(run / SWITCH, {LEVELS[0]: 8}, 6, style, keep="all"), tmp_path / "x")
    renderer = Renderer(build_tokenizer(), style)
    for t in made:
        rendered = renderer.render(t)
        for number, (start, _) in enumerate(rendered.spans):
            assert rendered.ids[:start] == prompts[t.id, number], (t.id, number, t.steps[number].actor)
    acted = [{s.actor for s in t.steps} for t in made]
    assert {"quick", "deepthink"} in acted, "some episode has both"
    assert agent.get("decide") or any(s.thought for t in made for s in t.steps) == (style == "react")

    store = build_store(tmp_path / "tokens", made, renderer, 1000, "error", "key")
    marks = {"calls": select_calls(made), "all": select_all(made)}
    marks |= {
        kind + "_calls": select_matched(kind, made, "calls", marks["calls"], 0) for kind in ("random", "non-critical")
    }
    trained = {name: Examples(store, notes) for name, notes in marks.items()}
    called = [t for t in made if any(s.actor == "deepthink" for s in t.steps)]
    assert len(trained["calls"]) == len(trained["random_calls"]) == len(called) <= len(trained["all"]) == 8
    for t, example in zip(called, trained["calls"], strict=True):
        spans = [span for span, s in zip(renderer.render(t).spans, t.steps, strict=True) if s.actor == "deepthink"]
        assert list(example.trained) == [place for span in spans for place in range(*span)]
    assert [len(a.critical) for a in marks["random_calls"]] == [len(a.critical) for a in marks["calls"]]


def test_replies_are_counted_and_a_server_that_fails_ends_it_until_it_is_there_again(tmp_path, server):
    quick = save_model("quick", tmp_path)
    theirs = {"model": "gpt-5", "base_url": server.url, "max_tokens": 200, "retries": 0, "price_completion": 500_000.0}
    run = finished_run(tmp_path / "run", [quick, theirs], [LEVELS[0]], 4, "react", unit="seconds")
    recipe = collects(run / "always-deepthink", {LEVELS[0]: 12}, 4, "react", keep="all")
    server.faults = [DOWN] * 5000
    with pytest.raises(AtlasError, match=r"lesson/always-deepthink, gpt-5: 10 of 10 answers are none.*HTTP 502"):
        collect(recipe, tmp_path / "x")
    assert not (tmp_path / "x" / "trajectories" / "expert.jsonl").exists()
    server.faults = []
    made = collect(recipe, tmp_path / "x")
    usage = read_json(tmp_path / "x" / "trajectories" / "usage.json")
    steps = sum(len(t.steps) for t in made)
    assert usage["calls"] == usage["steps"] == steps == usage["replies"]["ok"]
    assert (usage["episodes"], usage["kept"], usage["lost"]) == (12, 12, 0)
    assert usage["replies"]["lost"] >= 10, "those of the first start count"
    assert usage["tokens"] == [0, 12 * steps] and usage["money"] == pytest.approx(steps)
    assert [row for row in jsonl_rows(tmp_path / "x" / "events.jsonl") if row["event"] == "replies"][-1]["ok"] == steps


def test_an_answer_that_is_none_costs_its_episode_and_its_money_counts(tmp_path, server):
    run = finished_run(
        tmp_path / "run",
        ["expert", {"model": "gpt-5", "base_url": server.url, "max_tokens": 200, "price_completion": 500_000.0}],
        [LEVELS[0]],
        4,
        "react",
        unit="seconds",
    )
    server.script = lambda body: (
        answer("<think>hm", "length") if len(server.requests) == 3 else answer("Action: turn left")
    )
    recipe = collects(run / "always-deepthink", {LEVELS[0]: 6}, 4, "react", keep="all", tables={"num_envs": 1})
    made = collect(recipe, tmp_path / "x")
    usage = read_json(tmp_path / "x" / "trajectories" / "usage.json")
    assert (usage["episodes"], usage["kept"], usage["lost"], len(made)) == (6, 6, 1, 6)
    assert usage["steps"] == sum(len(t.steps) for t in made) + 2, "two steps before the answer that was none"


def test_the_command_line_collects_and_says_what_it_took(tmp_path, capsys):
    run = finished_run(tmp_path / "run", [save_model("quick", tmp_path), "expert"])
    path = tmp_path / "r.toml"
    text = f'name = "x"\nworkers = 0\nstyle = "action"\n[collect]\nswitch = "{run / SWITCH}"\nmax_steps = 20\n'
    path.write_text(f'{text}levels = {{ {LEVELS[0]} = 2 }}\n[select]\nselectors = ["calls", "random_calls", "all"]\n')
    out = ["--out", str(tmp_path / "x")]
    assert main(["collect", str(path), "--dry-run", *out]) == 0
    assert main(["run", str(path), *out]) == 0
    assert "episodes of lesson/switch-cost0.05-seed0 kept" in capsys.readouterr().out
    assert main(["collect", str(path), "--collect.switch", f"{run}/always-deepthnk", "--out", str(tmp_path / "y")]) == 2
    assert "collect.switch: the run has no switch or single model" in capsys.readouterr().err
    assert not (tmp_path / "y").exists()
