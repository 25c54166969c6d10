"""The tiny tokenizer and its networks, with BabyAI's words alone and with those of other environments."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoTokenizer

from atlas_ray.finetune.inputs import new_words
from atlas_ray.models.loading import load_tokenizer, resolve
from atlas_ray.models.tiny import UNKNOWN, build_model, build_tokenizer, frequent_words, vocabulary
from atlas_ray.recipe.loading import Recipe
from atlas_ray.trajectory import Step, Trajectory, write_trajectories

TEXTS = ["You are in the pantry.", "You see a fridge, that is closed.", "open fridge", "fridge"]


def test_frequent_words_are_those_that_are_no_tokens_yet():
    found = frequent_words(TEXTS, 100)
    assert found[0] == "fridge" and {"pantry", ".", "are", "in"} < set(found)
    assert not {"the", "open", ",", "closed"} & set(found)  # BabyAI's
    assert frequent_words(TEXTS, 2) == found[:2]
    assert frequent_words(reversed(TEXTS), 100) == found
    assert frequent_words(TEXTS, 0) == []


def test_a_tokenizer_with_words_knows_them_and_babyai_as_before(tmp_path):
    words = frequent_words(TEXTS, 100)
    plain, made = build_tokenizer(), build_tokenizer(words)
    assert vocabulary(words)[: len(vocabulary())] == vocabulary() and len(made) == len(vocabulary(words))
    babyai = "go to the red ball\nYou see a wall 2 steps forward"
    assert made.encode(babyai) == plain.encode(babyai)
    for text in TEXTS:
        assert UNKNOWN in plain.convert_ids_to_tokens(plain.encode(text))
        assert UNKNOWN not in made.convert_ids_to_tokens(made.encode(text))
    assert made.decode(made.encode("open fridge")) == "open fridge"
    made.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode(TEXTS[1]) == made.encode(TEXTS[1])


@pytest.mark.parametrize("name", ["tiny-quick", "tiny-deepthink"])
def test_the_tokenizer_is_that_of_transformers_and_needs_no_torch(name):
    code = (
        "import sys\nfrom atlas_ray.models.loading import load_tokenizer\n"
        "print(load_tokenizer(sys.argv[1]).encode('go to the red ball'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True)
    theirs, ours = AutoTokenizer.from_pretrained(resolve(name)), load_tokenizer(name)
    assert done.stdout == f"{theirs.encode('go to the red ball')} False\n"
    assert (type(ours), ours.init_kwargs) == (type(theirs), theirs.init_kwargs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()


def test_a_model_has_an_embedding_for_every_word():
    words = frequent_words(TEXTS, 100)
    model = build_model(16, 1, 2, 32, seed=0, words=words)
    ids = torch.tensor([build_tokenizer(words).encode(TEXTS[0])])
    assert model(ids).logits.shape[-1] == len(vocabulary(words)) == model.config.vocab_size


@pytest.mark.parametrize(("most", "expected"), [(0, []), (1, ["fridge"]), (3, ["fridge", "pantry", "jar"])])
def test_a_recipe_says_how_many_words_of_its_trajectories_are_learned(tmp_path, most, expected):
    seen = ["fridge pantry", "fridge pantry jar"]
    steps = [Step(observation=text, action="open fridge", reward=0.0) for text in seen]
    shared = {"env": "e", "task": "t", "seed": 0, "instruction": "go to the", "source": "expert"}
    one = Trajectory(id="a", steps=tuple(steps), score=1.0, success=True, **shared)
    write_trajectories(tmp_path / "trajectories" / "expert.jsonl", [one])
    raw = {
        "name": "words",
        "collect": {"file": "x"},
        "select": {"selectors": ["all"]},
        "finetune": {
            "arms": [{"selector": "all"}],
            "scratch": {"hidden": 16, "layers": 1, "heads": 2, "intermediate": 32, "words": most},
        },
    }
    assert new_words(Recipe.model_validate(raw), tmp_path) == expected
