"""Fine-tuning and roll-outs on a GPU, beside what their FLOPs allow, plain masking, TRL and the bare engine.

    python benchmarks/gpu.py --out gpu                               # 0.6b, 1.7b, 8b on one GPU: gpu/gpu.md and .json
    python benchmarks/gpu.py --out gpu --gpus 8 --shapes 8b          # all weights shared out by FSDP2
    python benchmarks/gpu.py --out gpu --trl trl/bin/python          # and TRL, see finetune_trl.py
    python benchmarks/gpu.py --out gpu --engine vllm                 # roll-outs by vLLM
    python benchmarks/gpu.py --out gpu --device cpu --shapes tiny    # tries the code

Weights are random, so nothing is fetched; the shapes are those of Qwen3-0.6B, Qwen3-1.7B and Llama-3.1-8B. Trajectories
are random tokens of lengths as in AgentTraj-L: an instruction of 200, then 10 to 30 steps of 65, of which 25 can be
trained; a random 30 % of the steps are. Every contestant is a process of its own: some optimiser steps of 32
trajectories, of which the first two do not count. ``tokens/s`` are of whole trajectories, trained or cut or context.
What is too large for the GPU is tried with half of ``--micro-tokens`` until it fits.

``of the peak`` is FLOPs that had to be computed, recomputation included, over the peak: what square matrix products
reach here, or ``--peak`` TFLOP/s of a data sheet. ``ceiling`` is tokens/s at the peak. ``computed`` is what scaling.py
has for this shape: GB, and tokens/s at 40 % of the peak.

Roll-outs play BabyAI with scored actions (needs minigrid) and 32 episodes at a time; the bare engine gets the very same
calls with nothing between them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from gpu_tables import judged, markdown

from atlas_ray.finetune.data import Example
from atlas_ray.finetune.flops import Shape, device_peak, forward_flops

QWEN = {"vocab": 151_936, "layers": 28, "heads": 16, "kv_heads": 8, "head_dim": 128}
SHAPES = {
    "tiny": ("llama", Shape(2, 64, 4, 2, 16, 128, 512), False),
    "0.6b": ("qwen3", Shape(hidden=1024, intermediate=3072, **QWEN), True),
    "1.7b": ("qwen3", Shape(hidden=2048, intermediate=6144, **QWEN), True),
    "8b": ("llama", Shape(32, 4096, 32, 8, 128, 14336, 128_256), False),
}
"""Kind, shape, and whether the LM head is the embedding."""
INSTRUCTION, STEP, ACTION, FRACTION = 200, 65, 25, 0.3
WARM, FLIGHT, RANK = 2, 32, 16
OFF = {"ours": (), "plain, packed": ("cut", "gather", "narrow"), "plain, padded": ("cut", "pack", "gather", "narrow")}
LEAST_TOKENS = 2048


def trajectories(count, vocab, seed=0):
    """Token ids and trained positions of each."""
    rng = random.Random(seed)
    for _ in range(count):
        steps = rng.randint(10, 30)
        ids = [rng.randrange(3, vocab) for _ in range(INSTRUCTION + steps * STEP)]
        ends = [INSTRUCTION + (s + 1) * STEP for s in sorted(rng.sample(range(steps), math.ceil(FRACTION * steps)))]
        yield ids, [p for end in ends for p in range(end - ACTION, end)]


def build(name, device, dtype=torch.float32):
    """A causal LM of that shape with random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, shape, tied = SHAPES[name]
    config = AutoConfig.for_model(
        kind,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=32_768,
        tie_word_embeddings=tied,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


# --- one contestant, in a process of its own ---


def train(options):
    """Train as ``--contestant`` says and write what it took."""
    from finetune import leave_out

    from atlas_ray.finetune.loop import train_run
    from atlas_ray.finetune.process_group import own_process_group
    from atlas_ray.recipe.loading import Arm, Finetune

    device, lora = torch.device(options.device), options.way == "lora"
    if "LOCAL_RANK" in os.environ:
        import torch.distributed as dist

        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    group = own_process_group(options.gpus, device)
    model = build(options.shape, device, torch.bfloat16 if lora and device.type == "cuda" else torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear"))
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.float()
    leave_out(OFF[options.contestant])
    config = Finetune(
        arms=[Arm(selector="all")],
        batch_size=options.batch,
        micro_tokens=options.micro_tokens,
        gradient_checkpointing=not options.no_checkpointing,
        learning_rate=1e-5,
        save_every=10**6,
        strategy="fsdp" if group.size > 1 and not lora else "ddp",
        workers=group.size,
        **({"lora": {"rank": RANK}} if lora else {}),
    )
    examples, whole = [], []
    for ids, trained in trajectories(options.batch * options.steps, SHAPES[options.shape][1].vocab):
        end = trained[-1] + 1 if options.contestant == "ours" else len(ids)
        examples.append(Example(ids[:end], trained, (), len(ids) - end))
        whole.append(len(ids))
    times = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as folder:
        counts = train_run(
            model,
            examples,
            config,
            options.steps,
            0,
            Path(folder),
            group=group,
            on_step=lambda _: times.append(time.perf_counter()),
        )
    if group.rank == 0:
        # every example is read once; the batches that count are those behind the first
        share = 1 - WARM / options.steps
        found = {
            "tokens_per_second": share * sum(whole) / (times[-1] - times[WARM - 1]),
            "flops_per_token": counts.flops / sum(whole),
            "peak_gb": memory(device),
        }
        Path(options.out).write_text(json.dumps(found))


def memory(device):
    """Most bytes of the device, in GB; on a CPU those of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def play(options):
    """Roll-outs against the bare engine; write what they took."""
    from rollout import Recorder, bare, roll

    from atlas_ray.agents.rollout import EnvSpec
    from atlas_ray.agents.spec import AgentSpec
    from atlas_ray.engines import TransformersEngine, make_engine
    from atlas_ray.models.tiny import build_tokenizer
    from atlas_ray.recipe.loading import Act, Engine

    device = torch.device(options.device)
    settings = Engine(kind=options.engine, context=4096)
    model = build(options.shape, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        if options.engine == "vllm":
            model.save_pretrained(folder)
            build_tokenizer().save_pretrained(folder)
            del model
            engine = make_engine(settings, folder, FLIGHT)
        else:
            engine = TransformersEngine(model, FLIGHT, build_tokenizer(), 4096, device)
        agent = AgentSpec(folder, settings, Act(), "action", FLIGHT).new_agent(engine)
        spec, seeds = EnvSpec("GoToLocalS6N4", {"max_steps": 20}), range(options.episodes)
        recorder = agent.engine = Recorder(engine)
        roll(agent, spec, seeds)
        agent.engine = engine
        rolled, replayed = roll(agent, spec, seeds), bare(engine, recorder.calls, 0)
        engine.close()
    tokens = rolled.counters.computed_tokens
    shape = SHAPES[options.shape][1]
    found = {
        "tokens_per_second": tokens / rolled.seconds,
        "bare_tokens_per_second": replayed.counters.computed_tokens / replayed.seconds,
        "decisions_per_second": rolled.decisions / rolled.seconds,
        "cached": rolled.counters.cached_tokens / rolled.counters.prompt_tokens,
        # (attention over what is kept is left out)
        "flops_per_token": forward_flops(shape, [1], 1),
    }
    Path(options.out).write_text(json.dumps(found))


# --- all of them ---


def run(command, out):
    """The JSON that a command writes, or why there is none."""
    done = subprocess.run([*map(str, command), "--out", str(out)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it ended without a word"]
        told = next((line for line in said if "out of memory" in line.lower()), said[-1])
        return {"failed": told.strip()[:300]}
    return json.loads(Path(out).read_text())


def contest(options, way, name, shape, folder):
    """A row of the table of training, with as many tokens a pass as fit."""
    micro = options.micro_tokens
    while True:
        given = ["--contestant", name, "--way", way, "--shape", shape, "--device", options.device]
        given += ["--batch", options.batch, "--steps", options.steps, "--gpus", options.gpus, "--micro-tokens", micro]
        given += ["--no-checkpointing"] if options.no_checkpointing else []
        launch = [sys.executable]
        if options.gpus > 1:
            launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.gpus}"]
        found = run([*launch, __file__, *given], folder / "out.json")
        if "out of memory" not in found.get("failed", "").lower() or micro // 2 < LEAST_TOKENS:
            return {"shape": shape, "way": way, "contestant": name, "micro_tokens": micro, **found}
        micro //= 2


def trl(options, way, shape, folder):
    """The same of TRL, with packed rows and its own fused head."""
    from atlas_ray.models.tiny import build_tokenizer

    if not (folder / shape).exists():
        build(shape, "cpu", torch.bfloat16).save_pretrained(folder / shape)
        build_tokenizer().save_pretrained(folder / shape)
        rows = trajectories(options.batch * options.steps, SHAPES[shape][1].vocab)
        lines = (json.dumps({"ids": ids, "trained": trained}) + "\n" for ids, trained in rows)
        (folder / shape / "examples.jsonl").write_text("".join(lines))
    command = [options.trl, Path(__file__).with_name("finetune_trl.py"), "--mode", "packed", "--lr", 1e-5]
    command += ["--examples", folder / shape / "examples.jsonl", "--model", folder / shape, "--device", options.device]
    command += ["--batch", options.batch, "--micro-tokens", options.micro_tokens]
    command += ["--lora", RANK] if way == "lora" else []
    found = run(command, folder / "out.json")
    row = {"shape": shape, "way": way, "contestant": "TRL, packed", "micro_tokens": options.micro_tokens}
    if "failed" in found:
        return row | found
    gib = found["device_gib"] or found["peak_rss_mib"] / 1024
    return row | {
        "tokens_per_second": found["after_first_step_tokens"] / found["after_first_step_seconds"],
        "peak_gb": gib * 2**30 / 1e9,
    }


def write(found, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    (out / "gpu.md").write_text(markdown(found))


def machine(options):
    cuda = options.device == "cuda"
    measured = device_peak(options.device, torch.bfloat16 if cuda else torch.float32, torch.get_num_threads())
    return {
        "name": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": options.device,
        "gpus": options.gpus,
        "checkpointing": not options.no_checkpointing,
        "rank": RANK,
        "peak_tflops": options.peak or measured / 1e12,
        "peak_from": "data sheet" if options.peak else "matrix products here",
        "steps": options.steps,
        "batch": options.batch,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpus", type=int, default=1, help="that train one model")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.6b", "1.7b", "8b"])
    parser.add_argument("--ways", nargs="+", choices=["full", "lora"], default=["full", "lora"])
    parser.add_argument("--batch", type=int, default=32, help="trajectories an optimiser step")
    parser.add_argument("--steps", type=int, default=6, help="optimiser steps, of which two do not count")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="tokens a pass")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--episodes", type=int, default=64)
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--peak", type=float, help="TFLOP/s in bfloat16 of a GPU's data sheet; else measured")
    parser.add_argument("--trl", help="python of an environment with TRL")
    parser.add_argument("--contestant", choices=[*OFF, "roll-out"], help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        (play if options.contestant == "roll-out" else train)(options)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU: --device cpu --shapes tiny tries the code")
    found = {"machine": machine(options), "training": [], "rollouts": []}
    peak, out = found["machine"]["peak_tflops"] * 1e12, Path(options.out)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for shape in options.shapes:
            for way in options.ways:
                for contestant in [one for one in OFF if options.gpus == 1 or one != "plain, padded"]:
                    row = contest(options, way, contestant, shape, folder)
                    found["training"].append(judged(row, SHAPES[shape][1], found["machine"]))
                    write(found, out)
                if options.trl and options.gpus == 1:
                    row = trl(options, way, shape, folder)
                    found["training"].append(judged(row, SHAPES[shape][1], found["machine"]))
                    write(found, out)
            row = {"shape": shape, "engine": options.engine}
            if find_spec("minigrid"):
                given = ["--contestant", "roll-out", "--shape", shape, "--device", options.device]
                given += ["--engine", options.engine, "--episodes", options.episodes]
                row |= run([sys.executable, __file__, *given], folder / "out.json")
            else:
                row |= {"failed": "needs minigrid"}
            if "flops_per_token" in row:
                row["ceiling"] = peak / row["flops_per_token"]
            found["rollouts"].append(row)
            write(found, out)
    print(markdown(found))


if __name__ == "__main__":
    main()
