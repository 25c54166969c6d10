"""The tables of gpu.py: what was measured, what it could have been, and what scaling.py computes."""

from __future__ import annotations

import scaling


def computed(shape, way, gpus, rank, micro):
    """GB of a GPU that scaling.py computes, all parts of a pass there at once."""
    one = scaling.FULL if way == "full" else scaling.LORA_DDP
    # (on one GPU nothing is gathered)
    fixed = scaling.states(shape, one, gpus, rank) + scaling.head_bytes(shape, one)
    fixed += scaling.gathered(shape, one) if gpus > 1 else 0
    return (fixed + micro * sum(scaling.token_bytes(shape, one, True))) / 1e9


def judged(row, shape, about):
    """A row of training of the machine ``about``, with what it could have been."""
    made = dict(row)
    if about["device"] == "cuda" and about["checkpointing"]:
        made["computed_gb"] = computed(shape, row["way"], about["gpus"], about["rank"], row["micro_tokens"])
    if "flops_per_token" in row:
        made["ceiling"] = about["peak_tflops"] * 1e12 * about["gpus"] / row["flops_per_token"]
        made["of_peak"] = row["tokens_per_second"] / made["ceiling"]
    return made


def cells(row, *fields):
    """Fields of a row as text: a name, and how it is written; what is not there is left out."""
    return [format(row[name], how) if name in row else "" for name, how in fields]


def markdown(found):
    """The tables of what was found."""
    about = found["machine"]
    lines = [
        f"{about['gpus']} x {about['name']}, torch {about['torch']}, peak {about['peak_tflops']:,.1f} TFLOP/s "
        f"({about['peak_from']}), {about['steps']} optimiser steps of {about['batch']} trajectories.",
        "",
        "| shape | trained | how | tokens/s | against plain, packed | of the peak | ceiling, tokens/s | at 40 % | GB | "
        "computed, GB | tokens a pass |",
        f"|{'---|' * 11}",
    ]
    plain = {(r["shape"], r["way"]): r for r in found["training"] if r["contestant"] == "plain, packed"}
    for row in found["training"]:
        names = f"| {row['shape']} | {row['way']} | {row['contestant']} | "
        if "failed" in row:
            lines.append(f"{names}failed: {row['failed'].replace('|', '/')} |{' |' * 7}")
            continue
        beside = plain.get((row["shape"], row["way"]), {}).get("tokens_per_second")
        more = {"gain": row["tokens_per_second"] / beside} if beside else {}
        more |= {"assumed": 0.4 * row["ceiling"]} if "ceiling" in row else {}
        shown = cells(
            row | more,
            ("tokens_per_second", ",.0f"),
            ("gain", ".2f"),
            ("of_peak", ".2f"),
            ("ceiling", ",.0f"),
            ("assumed", ",.0f"),
            ("peak_gb", ",.1f"),
            ("computed_gb", ",.1f"),
            ("micro_tokens", ","),
        )
        lines.append(names + " | ".join(shown) + " |")
    lines += [
        "",
        "| shape | engine | decisions/s | tokens/s | bare engine, tokens/s | of it | ceiling, tokens/s | "
        "from the cache |",
        f"|{'---|' * 8}",
    ]
    for row in found["rollouts"]:
        names = f"| {row['shape']} | {row['engine']} | "
        if "failed" in row:
            lines.append(f"{names}failed: {row['failed'].replace('|', '/')} |{' |' * 5}")
            continue
        share = row["tokens_per_second"] / row["bare_tokens_per_second"]
        shown = cells(
            row | {"share": share},
            ("decisions_per_second", ",.1f"),
            ("tokens_per_second", ",.0f"),
            ("bare_tokens_per_second", ",.0f"),
            ("share", ".2f"),
            ("ceiling", ",.0f"),
            ("cached", ".2f"),
        )
        lines.append(names + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"
