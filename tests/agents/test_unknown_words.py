"""Words that a tokenizer does not know: counted where they are trained on or read, said, and refused above a share."""

from functools import partial

import pytest
from finetune_examples import note
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from atlas_ray.agents.rendering import Renderer
from atlas_ray.agents.rollout import EnvSpec, start_episode
from atlas_ray.agents.token_agent import Agent
from atlas_ray.agents.unknown_words import Reader, Unknown, survey, warning
from atlas_ray.errors import InputError
from atlas_ray.finetune import finetune
from atlas_ray.finetune.store import build_store
from atlas_ray.models.loading import load_tokenizer
from atlas_ray.models.tiny import build_tokenizer
from atlas_ray.recipe.loading import Recipe
from atlas_ray.report.training import training_part
from atlas_ray.rundir.files import jsonl_rows, read_json, write_json
from atlas_ray.selection import scored_stage as scored
from atlas_ray.selection.controls import select_last
from atlas_ray.selection.oracle_stage import by_oracle
from atlas_ray.selection.start_after import start_after
from atlas_ray.trajectory import Step, Trajectory, write_annotations, write_trajectories
from tests.agents.test_rendering import bpe

TINY = build_tokenizer()


def word_level(unk):
    """Words as tokens; without ``unk`` the library drops what it does not know."""
    words = {word: i for i, word in enumerate(["[UNK]", "<end>", "go", "to", "the", "door"])}
    core = Tokenizer(models.WordLevel(words, unk_token=unk or "never"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token=unk, eos_token="<end>")


def dropping():
    """Characters as tokens, without one for the unknown: it vanishes."""
    core = Tokenizer(models.BPE({c: i for i, c in enumerate("abcdefghij <")}, []))
    core.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<")


def word_piece():
    core = Tokenizer(models.WordPiece({"[UNK]": 0, "go": 1, "##es": 2, "to": 3}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="to")


def ends_in_unknown():
    """GPT-2's way: the unknown token is the end of sequence, and bytes know everything."""
    tokenizer = bpe()
    tokenizer.unk_token = tokenizer.eos_token
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "text", "words"),
    [
        (TINY, "You see a fridge, open fridge then pantry", {"fridge": 2, "pantry": 1}),
        (TINY, "You see a red ball 2 steps forward", {}),
        (TINY, "go to the <|end|> [UNK]", {"<": 1, "|": 2, "end": 1, ">": 1, "[": 1, "UNK": 1, "]": 1}),
        (word_level("[UNK]"), "go to the Fridge", {"Fridge": 1}),
        (word_piece(), "goes to goat", {"goat": 1}),
        (dropping(), "bad kitchen cage", {"kitchen": 1}),
        (bpe(), "Kühlschrank ☃ <|end|>", {}),
        (ends_in_unknown(), "Kühlschrank ☃ <|end|>", {}),
    ],
)
def test_words_that_are_no_tokens_are_counted(tokenizer, text, words):
    counts, renderer = Unknown(tokenizer), Renderer(tokenizer)
    renderer.unknown = counts
    for _ in range(2):  # pieces are kept, and still counted
        tokens = len(renderer.encode(text))
    assert dict(counts.words) == {word: 2 * times for word, times in words.items()}
    assert counts.unknown == 2 * sum(words.values()) and counts.tokens == 2 * tokens
    assert counts.lossy == (tokenizer.backend_tokenizer.model.__class__.__name__ != "BPE" or bool(words))


def trajectory(name, observation="You see a red ball", steps=3, thought="explore"):
    return Trajectory(
        id=name,
        env="BabyAIText/GoToLocalS5N2-v0",
        task="t",
        seed=0,
        instruction="go to the red ball",
        steps=tuple(Step(observation=observation, thought=thought, action="go forward") for _ in range(steps)),
        score=1,
        success=True,
        source="expert",
    )


FOREIGN = "You are in the kitchen with a fridge and an oven"


def test_a_survey_counts_what_the_model_would_read(tmp_path):
    renderer = Renderer(TINY)
    items = [trajectory("a"), trajectory("b", FOREIGN, steps=2)]
    row = survey(renderer, items).row()
    # You, are, in, kitchen, with, fridge, an and oven, twice
    assert row["unknown"] == 16 and row["words"]["fridge"] == 2
    ends = sum(len(t.steps) for t in items)
    assert row["tokens"] == sum(len(renderer.render(t).ids) for t in items) - 2 * ends, "separators and ends left out"
    assert renderer.unknown is None
    store = build_store(tmp_path / "whole", items, renderer, 500, "error", "key")
    assert store.unknown == row == build_store(tmp_path / "whole", [], renderer, 500, "error", "key").unknown
    length = len(renderer.render(trajectory("b", FOREIGN, steps=1)).ids)
    cut = build_store(tmp_path / "cut", items[1:], renderer, length, "drop_first_steps", "key")
    assert cut.unknown["unknown"] == 8, "of what is kept"


def test_a_store_from_before_is_counted_again(tmp_path):
    store = build_store(tmp_path / "s", [trajectory("a", FOREIGN)], Renderer(TINY), 500, "error", "key")
    about = read_json(tmp_path / "s" / "store.json")
    del about["unknown"]
    write_json(tmp_path / "s" / "store.json", about)
    again = build_store(tmp_path / "s", [trajectory("a", FOREIGN)], Renderer(TINY), 500, "error", "key")
    assert again.unknown == store.unknown and again.unknown["unknown"] == 24


def recipe_of(selector="all", **changes):
    tuning = {"base": "tiny-quick", "arms": [{"selector": selector}], "workers": 0, "epochs": 1}
    raw = {"name": "words", "workers": 0, "collect": {"file": "x"}, "select": {"selectors": [selector]}}
    return Recipe.model_validate(raw | {"finetune": tuning} | changes)


def run_of(path, items):
    write_trajectories(path / "trajectories" / "expert.jsonl", items)
    write_annotations(path / "annotations" / "all.jsonl", [note(t.id, 0) for t in items])
    return path


def test_training_on_foreign_words_is_refused_with_the_words_and_the_way_out(tmp_path):
    run_dir = run_of(tmp_path, [trajectory(name, FOREIGN) for name in "ab"])
    with pytest.raises(InputError) as caught:
        finetune(recipe_of(), run_dir)
    says = str(caught.value)
    assert says.startswith("unknown_share: ") and "\n" not in says
    for part in (
        "tokens are unknown to the tokenizer of tiny-quick: ",
        "fridge (6 times)",
        "5% may be",
        "finetune.base",
    ):
        assert part in says
    assert not (run_dir / "checkpoints" / "all-s0").exists()
    scratch = {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 32}
    new = {"arms": [{"selector": "all"}], "workers": 0, "epochs": 1, "scratch": scratch}
    with pytest.raises(InputError, match="of the new model: .*finetune.scratch.words is 0"):
        finetune(recipe_of(finetune=new), run_dir)
    finetune(recipe_of(finetune=new | {"scratch": scratch | {"words": 100}}), run_dir)
    assert read_json(run_dir / "checkpoints" / "all-s0" / "run.json")["unknown"]["unknown"] == 0


def test_a_few_unknown_words_are_said_in_the_log_the_card_and_the_report(tmp_path, capsys):
    items = [trajectory(name) for name in "abcdefgh"] + [trajectory("z", "You see a fridge", steps=1)]
    run_dir = run_of(tmp_path, items)
    finetune(recipe_of(), run_dir)
    about = read_json(run_dir / "checkpoints" / "all-s0" / "run.json")["unknown"]
    assert about["unknown"] == 1 and about["words"] == {"fridge": 1}
    why = warning(about, "tiny-quick")
    assert why is not None and why.endswith("are unknown to the tokenizer of tiny-quick: fridge (1 times)")
    assert why in capsys.readouterr().out
    [event] = [row for row in jsonl_rows(run_dir / "events.jsonl") if row["event"] == "unknown tokens"]
    assert event["why"] == why
    assert (
        "unknown to the tokenizer of this model: fridge (1 times) |"
        in (run_dir / "checkpoints" / "all-s0" / "README.md").read_text()
    )
    page = "".join(map(str, training_part(run_dir)))
    assert "unknown to the tokenizer of all-s0: fridge (1 times)." in page


def test_all_of_it_may_be_unknown_if_the_recipe_says_so(tmp_path):
    run_dir = run_of(tmp_path, [trajectory(name, FOREIGN) for name in "ab"])
    finetune(recipe_of(unknown_share=1.0), run_dir)
    assert read_json(run_dir / "checkpoints" / "all-s0" / "run.json")["unknown"]["words"]["fridge"] == 6


@pytest.mark.parametrize(("selector", "count"), [("perplexity", 1), ("entropy", 1), ("value", 60)])
def test_selectors_that_read_whole_trajectories_refuse_them_before_they_begin(tmp_path, selector, count):
    recipe = recipe_of(selector)
    by = scored.by_value if selector == "value" else partial(scored.by_base, selector=selector)
    items = [trajectory(str(n), FOREIGN) for n in range(count)]
    with pytest.raises(InputError, match="^unknown_share: .*tiny-quick: .*fridge.*Let a model that knows them read"):
        by(recipe, tmp_path, items)
    assert list(jsonl_rows(tmp_path / "events.jsonl")) == []


def test_a_local_oracle_and_starts_after_marks_refuse_them_before_they_begin(tmp_path):
    recipe = recipe_of("oracle", select={"selectors": ["oracle"], "oracle": {"model": "tiny-quick"}})
    items = [trajectory(str(n), FOREIGN) for n in range(80)]
    with pytest.raises(InputError, match="^unknown_share: .*tiny-quick: .*fridge.*Let a model that knows them be the"):
        by_oracle(recipe, tmp_path, items)
    levels = {"levels": {"GoToLocal": 1}}
    recipe = recipe_of("last", collect=levels, select={"selectors": ["last"], "start_after": ["last"]})
    items = [t.model_copy(update={"env": "BabyAIText/GoToLocal-v0"}) for t in items]
    with pytest.raises(
        InputError, match="^unknown_share: .*tiny-quick: .*fridge.*Let a model that knows them read for"
    ):
        start_after(recipe, tmp_path, items, {"last": select_last(items, 0.5)})
    assert list(jsonl_rows(tmp_path / "events.jsonl")) == []


def test_a_selector_says_which_words_it_does_not_know(tmp_path, capsys):
    items = [trajectory(name) for name in "abcdefgh"] + [trajectory("z", "You see a fridge", steps=1)]
    made = scored.by_base(recipe_of("perplexity"), tmp_path, items, "perplexity")
    assert len(made) == 9
    [event] = [row for row in jsonl_rows(tmp_path / "events.jsonl") if row["event"] == "unknown tokens"]
    assert event["selector"] == "perplexity" and "fridge (1 times)" in event["why"]


class Nobody:
    """An engine that is never asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.slots, self.context = tokenizer, 1, 100_000


def test_a_player_stops_once_enough_was_read_to_tell_and_warns_once_below_that(monkeypatch, caplog):
    monkeypatch.setattr(Reader, "enough", 40)
    step = Step(observation="x", thought="t", action="go forward")
    agent = Agent(Nobody(TINY), unknown_share=0.05, name="tiny-quick")
    agent.start(0, "go to the red ball", [], FOREIGN)
    agent.advance(0, step, FOREIGN)
    with pytest.raises(InputError, match="^unknown_share: .*fridge.*Let a model that knows them play"):
        agent.advance(0, step, FOREIGN)
    few = Agent(Nobody(TINY), unknown_share=0.05, name="tiny-quick")
    few.start(0, "go to the red ball", [], "You see a fridge")
    for _ in range(60):
        few.advance(0, step, "You see a red ball 2 steps forward")
    [said] = [r.message for r in caplog.records if "unknown" in r.message]
    assert said.startswith("of what it reads, ") and said.endswith("of tiny-quick: fridge (1 times)")
    blind = Agent(Nobody(TINY))
    for _ in range(60):
        blind.start(0, "go to the red ball", [], FOREIGN)


def test_the_shipped_models_know_the_words_of_their_own_environment():
    tokenizer = load_tokenizer("tiny-quick")
    counts, renderer = Unknown(tokenizer), Renderer(tokenizer)
    renderer.unknown = counts
    for level in ("GoToLocal", "PickupLoc", "PutNextLocal", "Open", "UnlockPickup", "SynthSeq"):
        for seed in range(3):
            start = start_episode(EnvSpec(level, {}), seed)
            renderer.header(start.instruction)
            renderer.context(start.observation)
    assert counts.share < 0.05, counts.row()
