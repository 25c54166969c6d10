"""What the evaluation keeps of its episodes, against a plain table of them."""

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from switch_models import model

from atlas_ray.agents.token_agent import Agent, LostAnswer
from atlas_ray.data.replies import summed
from atlas_ray.errors import AtlasError
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.selection.controls import select_last
from atlas_ray.selection.reply_counts import replies_of
from atlas_ray.selection.scored_stage import by_value
from atlas_ray.selection.start_after import start_after
from atlas_ray.stages.collect import collect
from atlas_ray.stages.evaluate import Outcomes, _score, play_untuned

MODELS, LEVELS, FIRST, COUNT = ("none", "all/0"), ("A", "B"), 500, 6

rows = st.lists(
    st.fixed_dictionaries(
        {
            "model": st.sampled_from(MODELS),
            "level": st.sampled_from(LEVELS),
            "seed": st.integers(FIRST - 2, FIRST + COUNT + 1),
            "success": st.booleans(),
            "lost": st.booleans(),
        }
    ),
    max_size=30,
)


@given(rows)
def test_outcomes_are_those_of_a_table_of_the_last_row_of_each_episode(given_rows):
    ends, table = Outcomes(FIRST, COUNT), {}
    for row in given_rows:
        ends.note(row)
        if FIRST <= row["seed"] < FIRST + COUNT:
            table[row["model"], row["level"], row["seed"]] = None if row["lost"] else row["success"]
    assert (len(ends), ends.lost) == (len(table), list(table.values()).count(None))
    for name in MODELS:
        for level in LEVELS:
            for seed in range(FIRST - 3, FIRST + COUNT + 3):
                assert ends.ended(name, level, seed) == ((name, level, seed) in table)
                assert ends.success(name, level, seed) is table.get((name, level, seed))


def test_an_episode_that_one_training_lost_is_left_out_for_all():
    ends = Outcomes(0, 4)
    for seed, (one, other) in enumerate([(True, True), (True, None), (False, True), (False, False)]):
        for name, end in (("a/0", one), ("a/1", other)):
            ends.note({"model": name, "level": "A", "seed": seed, "success": bool(end), "lost": end is None})
    score = _score(ends, ["a/0", "a/1"], {"A": [0, 1, 2, 3]})
    assert (score.success, score.episodes) == (0.5, 6)


def test_a_hundred_thousand_episodes_take_a_hundred_kilobytes():
    tracemalloc.start()
    try:
        ends = Outcomes(0, 100_000)
        for seed in range(100_000):
            ends.note({"model": "a", "level": "A", "seed": seed, "success": seed % 3 == 0, "lost": False})
        assert len(ends) == 100_000
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def written(tmp_path):
    """A recipe whose untuned model writes its turns, in this process."""
    model("quick").save_pretrained(tmp_path / "quick")
    build_tokenizer().save_pretrained(tmp_path / "quick")
    return Recipe.model_validate(
        {
            "name": "small",
            "workers": 0,
            "num_envs": 4,
            "style": "action",
            "agent": {"decide": "generate", "action_tokens": 4},
            "collect": {"levels": {"PickupDist": 1}},
            "select": {"selectors": ["all"]},
            "finetune": {"base": str(tmp_path / "quick"), "arms": [{"selector": "all"}], "workers": 0},
            "evaluate": {"held_in": ["PickupDist"], "episodes": 12, "max_steps": 3},
        }
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(rows):
    return [row for row in rows if row["event"] == "replies"][-1]


def test_replies_of_a_resumed_evaluation_are_counted_from_its_rows(written, tmp_path, capsys):
    path = play_untuned(written, tmp_path / "run")
    events = tmp_path / "run" / "events.jsonl"
    whole, rows = counts(lines(events)), lines(path)
    total = summed(row["replies"] for row in rows)
    assert {**total.row(), "stage": "evaluate", "event": "replies"} == whole
    assert total.answers == sum(row["steps"] for row in rows) > 0
    assert f"replies of the models: {total.words()}" in capsys.readouterr().out
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
    play_untuned(written, tmp_path / "run")
    assert counts(lines(events)) == whole


def test_too_many_answers_that_are_none_stop_the_evaluation(written, tmp_path, monkeypatch):
    asked, read = [], Agent._read

    def fails(often):
        def answer(self, *told):
            asked.append(len(asked))
            if len(asked) % often:
                return read(self, *told)
            return LostAnswer("thinking used up all 4 tokens of a reply: raise agent.action_tokens", "empty")

        return answer

    monkeypatch.setattr(Agent, "_read", fails(2))
    with pytest.raises(AtlasError, match=r"^none: \d+ of \d+ answers are none.*raise agent\.action_tokens$"):
        play_untuned(written, tmp_path / "run")
    assert counts(lines(tmp_path / "run" / "events.jsonl"))["lost"] >= 3
    monkeypatch.setattr(Agent, "_read", fails(12))
    rows = lines(play_untuned(written, tmp_path / "other"))
    lost = [row for row in rows if row["lost"]]
    assert 0 < len(lost) < 12
    assert all(row["attempts"] == 1 and "action_tokens" in row["error"] and not row["success"] for row in lost)
    assert sum(row["replies"].get("lost", 0) for row in rows) == len(lost)


def test_an_episode_in_which_one_arm_gave_no_answer_is_left_out_for_the_others_too():
    ends = Outcomes(0, 4)
    for seed in range(4):
        for name, lost in (("none", False), ("all/0", seed == 1)):
            about = {"model": name, "level": "A", "seed": seed, "success": seed < 2 and not lost, "lost": lost}
            ends.note({**about, "replies": {"ok": 2, "lost": int(lost)}})
    score = _score(ends, ["none"], {"A": [0, 1, 2, 3]}, ["none", "all/0"])
    assert (score.success, score.episodes) == (1 / 3, 3)
    ends.note({"model": "all/0", "level": "A", "seed": 0, "success": False, "lost": True})
    assert _score(ends, ["none"], {"A": [0, 1, 2, 3]}, ["all/0"]).episodes == 3, "an environment may die anywhere"
    ends.note({"model": "all/0", "level": "A", "seed": 0, "success": True, "lost": False})
    assert (ends.lost_by(["none"]), ends.lost_by(["all/0"]), ends.replies["all/0"]["lost"]) == (0, 1, 1)


def test_replies_in_roll_outs_are_counted_from_their_rows_and_stop_the_selection(written, tmp_path, monkeypatch):
    select = written.select.model_copy(update={"start_after": ["last"], "rollouts": 2, "horizon": 2})
    select = select.model_copy(update={"model": written.finetune.base, "selectors": ["value", "last"]})
    levels = written.collect.model_copy(update={"levels": {"PickupDist": 3}})
    recipe = written.model_copy(update={"select": select, "collect": levels, "unknown_share": 1.0})
    run = tmp_path / "run"
    episodes = collect(recipe, run)
    by_value(recipe, run, episodes)
    rows = lines(run / "annotations" / "scores" / "value.jsonl")
    whole = counts(lines(run / "events.jsonl"))
    assert (
        whole
        == {"stage": "select", "event": "replies", "selector": "value"} | summed(row["replies"] for row in rows).row()
    )
    start_after(recipe, run, episodes, {"last": select_last(episodes, 0.5)})
    rows = lines(run / "annotations" / "scores" / "start-after.jsonl")
    whole = counts(lines(run / "events.jsonl"))
    assert (
        whole
        == {"stage": "select", "event": "replies", "about": "start-after"}
        | summed(row["replies"] for row in rows).row()
    )
    values = summed(r["replies"] for r in lines(run / "annotations" / "scores" / "value.jsonl"))
    starts = {"start-after": summed(row["replies"] for row in rows).row()}
    assert replies_of(run) == {"value": values.row(), **starts}
    lost = LostAnswer("thinking used up all 4 tokens of a reply: raise agent.action_tokens", "empty")
    monkeypatch.setattr(Agent, "_read", lambda self, *told: lost)
    with pytest.raises(AtlasError, match=r"answers are none, .*raise agent\.action_tokens$"):
        by_value(recipe, tmp_path / "other", episodes)
    whole = counts(lines(tmp_path / "other" / "events.jsonl"))
    assert whole["lost"] >= 10
    assert replies_of(tmp_path / "other")["value"]["lost"] == whole["lost"], "of those without a value too"
    with pytest.raises(AtlasError, match="answers are none"):
        start_after(recipe, tmp_path / "other", episodes, {"last": select_last(episodes, 0.5)})
    monkeypatch.undo()
    by_value(recipe, tmp_path / "other", episodes)
    start_after(recipe, tmp_path / "other", episodes, {"last": select_last(episodes, 0.5)})
    assert replies_of(tmp_path / "other") == replies_of(run), "what was lost was played again"
