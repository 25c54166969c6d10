"""TRL's SFTTrainer on given token ids and labels, for comparison with ``atlas-ray``'s masked fine-tuning.

    python -m venv trl && trl/bin/pip install torch==2.13.0    # torch first and exactly: a range may take another build
    trl/bin/pip install "trl>=1.16" transformers==5.19.0 peft==0.21.2 datasets accelerate
    trl/bin/python benchmarks/finetune_trl.py --examples examples.jsonl --model DIR --out result.json --mode best
    trl/bin/python benchmarks/finetune_trl.py --examples examples.jsonl --model DIR --out result.json \
        --fixed-order order.json                               # the loss of every step, for comparison

It imports nothing of ``atlas_ray``: TRL is no dependency of the project. A line of ``examples.jsonl`` is one
trajectory, ``{"ids": [...], "trained": [positions]}``; all other positions get the label -100. It runs on the CPU in
float32 unless ``--device`` says otherwise: then in bfloat16, trained weights in float32 and a frozen base in bfloat16.
Alike in all modes, since every contestant must do the same: batch size, AdamW (betas 0.9 and 0.98, no weight decay),
the learning rates of ``atlas-ray`` (below), gradient norm at most 1, no truncation, no checkpoint.

``default``: SFTConfig as it comes: random order, gradient checkpointing, a log line every 10 steps, a progress bar.
``best``: ``group_by_length``, no gradient checkpointing, no logging, no progress bar.
``packed``: rows of ``--micro-tokens`` without padding, one a pass, gradient checkpointing, no logging, no progress bar:
the best where there is a kernel for such rows. An optimiser step has as many rows as ``--batch`` examples fill.

``train_seconds`` is the time of ``trainer.train()``, ``after_first_step_seconds`` that from the end of its first step
to the end of its last, ``train_cpu_seconds`` the processor time of ``trainer.train()`` over all threads. ``tokens`` are
without padding, ``padded_tokens`` with it. ``final_eval_loss`` is the mean over the trained tokens of all examples,
after training and by plain forward passes.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false")

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

PACKAGES = ("trl", "transformers", "torch", "peft", "datasets", "accelerate")
MODES = {
    "default": {},
    "best": {
        "train_sampling_strategy": "group_by_length",
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "disable_tqdm": True,
    },
    "packed": {
        "packing": True,
        "gradient_checkpointing": True,
        "logging_strategy": "no",
        "disable_tqdm": True,
    },
}


def learning_rate_scale(step, steps, warmup):
    """The schedule of ``atlas-ray``. That of transformers starts at 0, so its first step trains nothing."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)


class Trainer(SFTTrainer):
    """SFTTrainer that notes the loss and the tokens of every step; the batches may be given."""

    def __init__(self, *args, fixed_order=None, warmup=0.1, **kwargs):
        self.fixed_order, self.warmup = fixed_order, warmup
        self.losses, self.divisors, self.label_counts, self.token_counts, self.padded_tokens = [], [], [], [], 0
        super().__init__(*args, **kwargs)

    def get_train_dataloader(self):
        if self.fixed_order is None:
            return super().get_train_dataloader()
        dataset = self._remove_unused_columns(self.train_dataset)
        return self.accelerator.prepare(
            DataLoader(dataset, batch_sampler=self.fixed_order, collate_fn=self.data_collator)
        )

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: learning_rate_scale(step, num_training_steps, self.warmup)
        )
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.label_counts.append(inputs["labels"][:, 1:].ne(-100).sum())
        # (packed rows have no padding, and no mask)
        mask = inputs.get("attention_mask")
        self.token_counts.append(inputs["input_ids"].numel() if mask is None else mask.sum())
        self.padded_tokens += inputs["input_ids"].numel()
        self.divisors.append(num_items_in_batch)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss)
        return loss


class Clock(TrainerCallback):
    """Notes when every optimiser step ended and at which learning rate it was taken."""

    def __init__(self):
        self.ends, self.learning_rates = [], []

    def on_step_begin(self, args, state, control, lr_scheduler=None, **kwargs):
        self.learning_rates.append(lr_scheduler.get_last_lr()[0])

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def read_examples(path):
    """Token ids and trained positions of every example."""
    examples = []
    with Path(path).open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if len(set(row["trained"])) != len(row["trained"]) or not all(
                0 < p < len(row["ids"]) for p in row["trained"]
            ):
                raise SystemExit(
                    f"example {len(examples)}: trained positions repeat, or are no position after the first"
                )
            examples.append((row["ids"], sorted(row["trained"])))
    return examples


def as_dataset(examples):
    """What SFTTrainer takes as already tokenised: with ``labels`` it builds none itself."""
    labels = []
    for ids, trained in examples:
        row = [-100] * len(ids)
        for position in trained:
            row[position] = ids[position]
        labels.append(row)
    return Dataset.from_dict({"input_ids": [ids for ids, _ in examples], "labels": labels})


def status_mib(key):
    """A size from the process's status, such as ``VmHWM``."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    return None


def reset_peak():
    """Let the peak of memory count from now on; where that is not allowed it counts from the start."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError as error:
        print(f"peak memory counts from the start of the process: {error}")


@torch.inference_mode()
def mean_loss(model, examples, budget=2048):
    """Mean negative log-likelihood over all trained tokens, at most ``budget`` padded tokens a pass."""
    model.eval()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    total, count, start = 0.0, 0, 0
    while start < len(order):
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(examples[order[end]][0]) <= budget:
            end += 1
        batch = [examples[i] for i in order[start:end]]
        longest = len(batch[-1][0])
        # right padding plus causal attention: no real token sees padding, so no mask is needed
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        rows = torch.tensor([row for row, (_, trained) in enumerate(batch) for _ in trained], dtype=torch.long)
        columns = torch.tensor([p for _, trained in batch for p in trained], dtype=torch.long)
        total += float(F.cross_entropy(logits[rows, columns - 1].float(), ids[rows, columns], reduction="sum"))
        count += len(rows)
        start = end
    return total / count


def make_trainer(options, examples, fixed_order, clock, directory):
    cpu, lora = options.device == "cpu", None
    frozen = options.lora or options.adapter
    # (float32 is what TRL loads by itself)
    dtype = torch.float32 if cpu or not frozen else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype)
    if options.adapter:
        model = PeftModel.from_pretrained(model, options.adapter, is_trainable=True)
    elif options.lora:
        lora = LoraConfig(
            r=options.lora, lora_alpha=options.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    batch, accumulation, longest = options.batch, 1, None
    if options.mode == "packed":
        batch, longest = 1, max(options.micro_tokens, *(len(ids) for ids, _ in examples))
        a_row = longest * len(examples) / sum(len(ids) for ids, _ in examples)
        accumulation = max(1, round(options.batch / a_row))
    config = SFTConfig(
        output_dir=directory,
        use_cpu=cpu,
        bf16=not cpu,  # True unless told
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps,
        learning_rate=options.lr,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=longest,  # 1024 unless told: longer examples would be cut
        save_strategy="no",
        report_to="none",
        seed=options.seed,
        **MODES[options.mode],
    )
    return Trainer(
        model=model,
        args=config,
        train_dataset=as_dataset(examples),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=lora,
        callbacks=[clock],
        fixed_order=fixed_order,
        warmup=options.warmup,
    )


def check_labels(trainer, examples, options):
    """Stop unless the loss was a mean over all trained tokens and no others. Returns their number."""
    labels, divisors = [[int(n) for n in noted] for noted in (trainer.label_counts, trainer.divisors)]
    together = trainer.args.gradient_accumulation_steps
    steps = [labels[i : i + together] for i in range(0, len(labels), together)]
    if [sum(step) for step in steps for _ in step] != divisors:
        raise SystemExit("the loss was not divided by the number of trained tokens of the step")
    trained = [len(positions) for _, positions in examples]
    if trainer.fixed_order is not None:
        expected = [sum(trained[i] for i in indices) for indices in trainer.fixed_order]
        if labels != [expected[step % len(expected)] for step in range(len(labels))]:
            raise SystemExit("steps were not those of the fixed order")
    elif options.max_steps < 0 and sum(labels) != options.epochs * sum(trained):
        raise SystemExit(f"{sum(labels)} tokens were trained, {options.epochs * sum(trained)} should have been")
    return sum(labels)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--examples", required=True, help="JSON lines with ids and trained positions")
    parser.add_argument("--model", required=True, help="directory of the model and its tokenizer")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--mode", choices=MODES, default="default")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters of all linear layers but the LM head")
    parser.add_argument("--lora-alpha", type=int, default=32)
    parser.add_argument("--adapter", metavar="DIR", help="saved adapter to start from, in place of --lora")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="tokens of a row of --mode packed")
    parser.add_argument("--batch", type=int, default=32, help="examples an optimiser step")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps that warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-steps", type=int, default=-1, help="all steps of the run and its schedule")
    parser.add_argument(
        "--fixed-order", "--order", metavar="JSON", help="a list of lists of example indices, one an optimiser step"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the order and of new adapters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    examples = read_examples(options.examples)
    order = json.loads(Path(options.fixed_order).read_text(encoding="utf-8")) if options.fixed_order else None
    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        trainer = make_trainer(options, examples, order, clock, directory)
        base_rss = status_mib("VmRSS")
        reset_peak()
        begun, cpu_begun = time.perf_counter(), time.process_time()
        trainer.train()
        train_seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        peak_rss = status_mib("VmHWM")
    together = trainer.args.gradient_accumulation_steps
    result = {
        "after_first_step_tokens": sum(int(n) for n in trainer.token_counts[together:]),
        "device_gib": None if options.device == "cpu" else torch.cuda.max_memory_allocated() / 2**30,
        "mode": options.mode,
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "options": vars(options),
        "train_seconds": train_seconds,
        "train_cpu_seconds": cpu_seconds,
        "after_first_step_seconds": clock.ends[-1] - clock.ends[0],
        "steps": len(clock.ends),
        "losses": [float(loss) for loss in trainer.losses],
        "learning_rates": clock.learning_rates,
        "trained_tokens": check_labels(trainer, examples, options),
        "tokens": sum(int(n) for n in trainer.token_counts),
        "padded_tokens": trainer.padded_tokens,
        "base_rss_mib": base_rss,
        "peak_rss_mib": peak_rss,
        "final_eval_loss": mean_loss(trainer.model, examples),
    }
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print({key: value for key, value in result.items() if key not in ("losses", "learning_rates", "options")})


if __name__ == "__main__":
    main()
