"""Lets LLaMA-Factory's own dataset loader read exported pairs, for ``stage: dpo``, and compares every turn.

    python -m venv factory && factory/bin/pip install torch==2.13.0    # torch first and exactly
    factory/bin/pip install llamafactory==0.9.5 && factory/bin/pip install --no-deps -e .
    atlas-ray export runs/mine --format llamafactory-pairs --selector verified --out pairs.jsonl
    factory/bin/python benchmarks/pairs_llamafactory.py pairs.jsonl

LLaMA-Factory is no dependency of the project. The tokenizer is a byte-level one trained on the file itself, so that no
word is lost. It ends with an error where a record is left out, a turn stands elsewhere, or labels are not those of the
chosen and the rejected turn alone.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

from llamafactory.data.loader import get_dataset
from llamafactory.data.template import get_template_and_fix_tokenizer
from llamafactory.extras.constants import IGNORE_INDEX
from llamafactory.hparams import DataArguments, ModelArguments
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainingArguments

INFO = {
    "file_name": "pairs.jsonl",
    "formatting": "sharegpt",
    "ranking": True,
    "columns": {"messages": "conversations", "system": "system", "chosen": "chosen", "rejected": "rejected"},
}
"""What docs/formats.md says to set in ``dataset_info.json``."""


def tokenizer_of(text):
    """A tokenizer that loses nothing of a text."""
    made = ByteLevelBPETokenizer()
    made.train_from_iterator([text], vocab_size=600, special_tokens=["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, **ends)


def read(path, folder):
    """The pairs as LLaMA-Factory gives them to its trainer, and the tokenizer."""
    text = path.read_text()
    (folder / "pairs.jsonl").write_text(text)
    (folder / "dataset_info.json").write_text(json.dumps({"ours": INFO}))
    tokenizer = tokenizer_of(text)
    data = DataArguments(dataset="ours", dataset_dir=str(folder), template="chatml", cutoff_len=100_000)
    training = Seq2SeqTrainingArguments(output_dir=str(folder / "out"), use_cpu=True)
    template = get_template_and_fix_tokenizer(tokenizer, data)
    model = ModelArguments(model_name_or_path="none")
    return get_dataset(template, model, data, training, stage="rm", tokenizer=tokenizer)["train_dataset"], tokenizer


def main():
    path = Path(sys.argv[1])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder:
        found, tokenizer = read(path, Path(folder))
        assert len(found) == len(records), f"{len(records) - len(found)} records are left out"
        for record, example in zip(records, found, strict=True):
            for side in ("chosen", "rejected"):
                whole, at = tokenizer.decode(example[f"{side}_input_ids"]), 0
                for said in (record["system"], *(t["value"] for t in (*record["conversations"], record[side]))):
                    at = whole.index(said, at) + len(said)
                labels = [token for token in example[f"{side}_labels"] if token != IGNORE_INDEX]
                trained = tokenizer.decode(labels).replace("<|im_end|>", "").strip()
                assert trained == record[side]["value"].strip(), (trained, record[side]["value"])
        print(f"{len(records)} pairs, every turn in its place, labels of the two turns alone")


if __name__ == "__main__":
    main()
