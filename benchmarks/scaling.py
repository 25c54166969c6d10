"""What fine-tuning a large model would take on A100s: computed from shapes and data sheets, nothing is run.

    python benchmarks/scaling.py                                    # the tables of docs/scaling.md
    python benchmarks/scaling.py --model qwen2.5-7b --gpus 8 --micro-tokens 32768

Bytes a token that a layer keeps were counted once on a small Llama with torch.autograd.graph.saved_tensors_hooks: 16 to
24 for each hidden unit, 4 for each unit of the keys, 8 for each unit of the MLP.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from atlas_ray.finetune.flops import Shape, parameters, plain_flops, training_flops

MODELS = {
    "llama-3.1-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "qwen2.5-7b": Shape(28, 3584, 28, 4, 128, 18944, 152064),
    "mistral-7b-v0.3": Shape(32, 4096, 32, 8, 128, 14336, 32768),
}  # none of them ties its embeddings

MEMORY = 80e9  # bytes of an A100-80GB
USABLE = 0.9  # the rest is CUDA's, NCCL's and the allocator's
PEAK = 312e12  # FLOP/s in bfloat16, dense
NVLINK = 300e9  # bytes/s into a GPU: 600 GB/s is both directions
NETWORK = 200e9  # bytes/s into a node of eight GPUs: 8 x 25 GB/s
NODE = 8
PIECE = 1 << 24  # logits that the trainer makes at a time
CORPUS = 11_485  # trajectories of AgentTraj-L's ten held-in environments


@dataclass(frozen=True)
class Way:
    """How a model is trained: what of it, whether workers share it out, bytes a layer keeps for each hidden unit."""

    name: str
    lora: bool
    sharded: bool
    hidden_bytes: int


FULL = Way("full, FSDP", False, True, 20)
LORA_FSDP = Way("LoRA, FSDP", True, True, 16)
LORA_DDP = Way("LoRA, DDP", True, False, 24)


@dataclass(frozen=True)
class Work:
    """Trajectories of one length, of which some steps are critical, in tokens."""

    steps: int
    tokens: int
    step_tokens: int
    action_tokens: int
    critical: int

    @property
    def trained(self) -> int:
        return self.critical * self.action_tokens

    def cuts(self) -> Iterator[tuple[int, float]]:
        """Length up to the last critical step and its probability, critical steps being drawn at random."""
        for last in range(self.critical, self.steps + 1):
            share = math.comb(last - 1, self.critical - 1) / math.comb(self.steps, self.critical)
            yield self.tokens - (self.steps - last) * self.step_tokens, share

    @property
    def kept(self) -> float:
        """Mean tokens of a trajectory behind the cut."""
        return sum(length * share for length, share in self.cuts())

    def flops(self, shape: Shape, lora: bool, checkpointing: bool) -> float:
        """FLOPs of a trajectory as the trainer computes it."""
        n = self.trained
        return sum(share * training_flops(shape, [cut], n, n, lora, checkpointing) for cut, share in self.cuts())


def adapters(shape: Shape, rank: int) -> int:
    """Weights of adapters on every matrix of the layers."""
    keys = shape.kv_heads * shape.head_dim
    queries = shape.heads * shape.head_dim
    attention = 2 * (shape.hidden + queries) + 2 * (shape.hidden + keys)
    return shape.layers * rank * (attention + 3 * (shape.hidden + shape.intermediate))


def states(shape: Shape, way: Way, gpus: int, rank: int) -> float:
    """Bytes on a GPU of weights, gradients and AdamW's two moments in float32; DDP has its frozen base in bfloat16."""
    weights = parameters(shape, tied=False)
    if not way.lora:
        return 16 * weights / gpus
    trained = 16 * adapters(shape, rank)
    return (4 * weights + trained) / gpus if way.sharded else 2 * weights + trained


def gathered(shape: Shape, way: Way) -> float:
    """Bytes that FSDP2 holds whole: embeddings, LM head and two layers, the next being fetched ahead, in bfloat16.

    Full training adds the head's gradient and those of two layers, in bfloat16 and, to be summed, in float32.
    """
    if not way.sharded:
        return 0
    layer = shape.inputs + shape.output + shape.mlp
    embedding = shape.vocab * shape.hidden
    weights = 2 * (2 * embedding + 2 * layer)
    return weights if way.lora else weights + 2 * embedding + 6 * 2 * layer


def token_bytes(shape: Shape, way: Way, checkpointing: bool) -> tuple[float, float]:
    """Bytes a token that all layers keep for the backward pass, and that the layer in work takes."""
    layer = way.hidden_bytes * shape.hidden + 4 * shape.kv_heads * shape.head_dim + 8 * shape.intermediate
    gradients = 6 * shape.intermediate
    if checkpointing:
        return shape.layers * 2 * shape.hidden, layer + gradients
    return shape.layers * layer, gradients


def head_bytes(shape: Shape, way: Way) -> float:
    """Bytes of a piece of logits in float32 with its softmax and gradients, and of the head's own gradient."""
    return 16 * PIECE + (0 if way.lora else 4 * shape.vocab * shape.hidden)


def whole_gradients(shape: Shape, way: Way, rank: int) -> float:
    """Bytes of all gradients in float32."""
    return 4 * (adapters(shape, rank) if way.lora else parameters(shape, tied=False))


def moved(shape: Shape, way: Way, gpus: int, rank: int) -> tuple[float, float]:
    """Bytes into a GPU for each pass and for each optimiser step.

    FSDP2 gathers the weights twice a pass, in bfloat16, and scatters gradients in float32; DDP adds them once a step.
    """
    others = (gpus - 1) / gpus
    weights = parameters(shape, tied=False) * others
    gradients = whole_gradients(shape, way, rank) * others
    return (4 * weights + gradients, 0.0) if way.sharded else (0.0, 2 * gradients)


def sent(shape: Shape, way: Way, gpus: int, rank: int, passes: int, whole: bool) -> float:
    """Bytes into a GPU for an optimiser step under FSDP2, whose gradients are scattered in every pass or kept whole."""
    a_pass, _ = moved(shape, way, gpus, rank)
    gradients = whole_gradients(shape, way, rank) * (gpus - 1) / gpus
    return passes * a_pass - (passes - 1) * gradients * whole


def bandwidth(gpus: int) -> float:
    """Bytes/s into a GPU when all take part: every byte enters a node once and is passed on inside it."""
    return NVLINK if gpus <= NODE else min(NVLINK, NETWORK)


def table(rows: list[str]) -> None:
    head, *body = rows
    for row in [head, "|".join(["---"] * len(head.split("|"))), *body]:
        print(f"| {row.replace('|', ' | ')} |")
    print()


def memory(shape: Shape, options: argparse.Namespace, work: Work) -> None:
    micro = options.micro_tokens
    print(f"### Memory of a GPU in GB, {micro:,} tokens a pass\n")
    rows = ["way|GPUs|weights, gradients, AdamW|gathered|head|kept|layer in work|sum|most tokens|without checkpointing"]
    for gpus, way in itertools.product(options.gpus, (FULL, LORA_FSDP, LORA_DDP)):
        fixed = [states(shape, way, gpus, options.rank), gathered(shape, way), head_bytes(shape, way)]
        most = []
        for checkpointing in (True, False):
            room = (USABLE * MEMORY - sum(fixed)) / sum(token_bytes(shape, way, checkpointing))
            most.append(f"{room // 1000:,.0f} k" if room >= 1000 else "none")
        parts = fixed + [b * micro for b in token_bytes(shape, way, True)]
        cells = [*(f"{p / 1e9:.1f}" for p in parts), f"{sum(parts) / 1e9:.0f}", *most]
        rows.append("|".join([way.name, str(gpus), *cells]))
    table(rows)


def communication(shape: Shape, options: argparse.Namespace, work: Work) -> None:
    print("### Communication of a step of one pass\n")
    rows = ["way|GPUs|GB into a GPU|ms|tokens that a GPU computes meanwhile"]
    for gpus, way in itertools.product(options.gpus, (FULL, LORA_FSDP, LORA_DDP)):
        size = sum(moved(shape, way, gpus, options.rank))
        seconds = size / bandwidth(gpus)
        tokens = seconds * PEAK * options.mfu / work.flops(shape, way.lora, True) * work.kept
        rows.append(f"{way.name}|{gpus}|{size / 1e9:.1f}|{seconds * 1e3:.0f}|{tokens:,.0f}")
    table(rows)


def accumulation(shape: Shape, options: argparse.Namespace, work: Work) -> None:
    print("### Gradients between the passes of a step\n")
    rows = ["way|GPUs|passes|scattered: GB into a GPU|ms|whole: GB into a GPU|ms|more GB on a GPU"]
    for gpus, way, passes in itertools.product(options.gpus, (FULL, LORA_FSDP), (2, 8)):
        cells = []
        for whole in (False, True):
            size = sent(shape, way, gpus, options.rank, passes, whole)
            cells += [f"{size / 1e9:.1f}", f"{size / bandwidth(gpus) * 1e3:,.0f}"]
        more = whole_gradients(shape, way, options.rank) * (gpus - 1) / gpus
        rows.append("|".join([way.name, str(gpus), str(passes), *cells, f"{more / 1e9:.1f}"]))
    table(rows)


def plans(gpus: int, batch: int) -> list[tuple[int, int]]:
    """Workers of a model and trajectories of its optimiser step that are worth a look on so many GPUs."""
    return [(gpus, batch)] if gpus <= NODE else [(4, batch), (gpus, gpus), (gpus, batch * gpus // 4)]


def speed(shape: Shape, options: argparse.Namespace, work: Work) -> None:
    print(f"### Speed at {options.mfu:.0%} of the peak, with gradient checkpointing\n")
    rows = ["way|models x GPUs|batch|passes|PFLOPs a step|compute, s|transfer, s|tokens/s|steps an epoch|minutes"]
    for gpus, way in itertools.product(options.gpus, (FULL, LORA_DDP)):
        for workers, batch in plans(gpus, options.batch_size):
            models = gpus // workers
            flops = batch * work.flops(shape, way.lora, True)
            compute = flops / (workers * PEAK * options.mfu)
            passes = math.ceil(math.ceil(batch / workers) / max(1, int(options.micro_tokens // work.kept)))
            a_pass, a_step = moved(shape, way, workers, options.rank)
            transfer = (passes * a_pass + a_step) / bandwidth(workers)
            seconds = max(compute, transfer)
            steps = math.ceil(CORPUS / batch)
            rows.append(
                f"{way.name}|{models} x {workers}|{batch}|{passes}|{flops / 1e15:.1f}|{compute:.2f}|{transfer:.2f}|"
                f"{models * batch * work.tokens / seconds:,.0f}|{steps}|{steps * seconds / 60:.1f}"
            )
    table(rows)


def saving(shape: Shape, options: argparse.Namespace, work: Work) -> None:
    print("### What the masked loss saves\n")
    n, every = work.trained, work.steps * work.action_tokens
    early = round(work.tokens - 0.2 * work.steps * work.step_tokens)
    modes = [(False, False), (False, True), (True, True)]
    costs: dict[str, Sequence[float]] = {
        "plain masking, no padding": [plain_flops(shape, [work.tokens], *m) for m in modes],
        "LM head at trained positions": [training_flops(shape, [work.tokens], n, None, *m) for m in modes],
        "and the last layer's MLP": [training_flops(shape, [work.tokens], n, n, *m) for m in modes],
        "and cut, critical steps anywhere": [work.flops(shape, *m) for m in modes],
        "and cut, the last one at 0.8": [training_flops(shape, [early], n, n, *m) for m in modes],
        "all steps trained, nothing cut": [training_flops(shape, [work.tokens], every, every, *m) for m in modes],
    }
    plain = costs["plain masking, no padding"]
    rows = ["TFLOPs a trajectory (factor over plain)|full|full, checkpointing|LoRA, checkpointing"]
    for name, row in costs.items():
        cells = (f"{cost / 1e12:.1f} ({p / cost:.2f})" for cost, p in zip(row, plain, strict=True))
        rows.append("|".join([name, *cells]))
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="llama-3.1-8b")
    parser.add_argument("--gpus", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--batch-size", type=int, default=32, help="trajectories an optimiser step")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="tokens of a worker's pass")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached: an assumption")
    parser.add_argument("--steps", type=int, default=20, help="of a trajectory")
    parser.add_argument("--tokens", type=int, default=1500, help="of a trajectory")
    parser.add_argument("--step-tokens", type=int, default=65, help="of a step, observation and action")
    parser.add_argument("--action-tokens", type=int, default=25, help="of a step that carry loss if it is critical")
    parser.add_argument("--fraction", type=float, default=0.3, help="of the steps that are critical")
    options = parser.parse_args()
    shape = MODELS[options.model]
    critical = math.ceil(options.fraction * options.steps)
    work = Work(options.steps, options.tokens, options.step_tokens, options.action_tokens, critical)
    print(f"{options.model}: {parameters(shape, tied=False) / 1e9:.2f} G parameters, ", end="")
    print(f"{adapters(shape, options.rank) / 1e6:.1f} M in adapters of rank {options.rank}. ", end="")
    print(f"A trajectory: {work.tokens:,} tokens, {work.trained} trained, {work.kept:,.0f} behind the cut.\n")
    for part in (memory, communication, accumulation, speed, saving):
        part(shape, options, work)


if __name__ == "__main__":
    main()
