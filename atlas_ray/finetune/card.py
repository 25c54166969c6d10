"""The model card of a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..agents.unknown_words import NOTHING, warning
from ..recipe.loading import Recipe


def card(recipe: Recipe, about: dict[str, Any], scores: dict[str, str] | None = None) -> str:
    """Markdown with Hugging Face's header: what was trained on what, how, and how it scores.

    Args:
        recipe: of the run.
        about: what stands in ``run.json``.
        scores: by name, as they shall be read; without them the card says that there are none.
    """
    config = recipe.finetune
    assert config is not None
    base = "none" if config.scratch else Path(config.base).name if Path(config.base).exists() else config.base
    adapter = config.lora is not None
    kind = f"LoRA adapter of rank {config.lora.rank} for {base}" if config.lora else f"{base}, all weights tuned"
    head = ["---", f"library_name: {'peft' if adapter else 'transformers'}", "pipeline_tag: text-generation"]
    if base != "none" and base == config.base:
        head.append(f"base_model: {base}")
    head += ["tags:", "- atlas-ray", "- atlas", *(["- lora"] if adapter else []), "---"]
    pairs = about.get("pairs")
    anchor = f", anchored to the base with weight {about['anchor']:g} elsewhere" if about["anchor"] else ""
    what = "pairs" if pairs else "trajectories"
    how = "supervised fine-tuning on expert trajectories with the loss on selected steps only"
    how = "direct preference optimisation (DPO) on pairs of turns, each on the same history" if pairs else how
    rows = {
        "base": "a new model" if config.scratch else kind,
        "trained on": _on_pairs(about) if pairs else f"the steps of selector `{about['selector']}`{anchor}",
        "share of steps": f"{about['steps_share']:.1%}",
        f"{what}": f"{about['examples']} of {about['trajectories']}",
        f"{what}, sha256": f"`{about['data_sha256']}`",
        "optimiser steps": f"{about['steps']:,}",
        "trained tokens": f"{about['trained_tokens']:,}",
        "context tokens": f"{about['context_tokens']:,}",
        "seed": str(about["seed"]),
        "prompt": f"{recipe.prompt}, style {recipe.style}",
    }
    if why := warning(about.get("unknown", NOTHING), "this model"):
        rows["unknown tokens"] = why
    if about["best"] is not None:
        rows["weights of step"] = f"{about['best']} of {about['steps']}, the best on held-in episodes"
    rows |= scores or {"scores": "not measured yet"}
    table = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]
    resolved = json.dumps(recipe.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False)
    return "\n".join(
        [
            *head,
            "",
            f"# {recipe.name}: {about['selector']}, seed {about['seed']}",
            "",
            f"Made by atlas-ray: {how}.",
            "It acts in text environments, prompted as the recipe says, and is no chat model.",
            "",
            *table,
            "",
            "The whole recipe:",
            "",
            "```json",
            resolved,
            "```",
            "",
        ]
    )


def _on_pairs(about: dict[str, Any]) -> str:
    pairs = about["pairs"]
    beside = f", with {pairs['sft']:g} times the cross entropy of the chosen turns" if pairs["sft"] else ""
    return f"pairs of `{about['selector']}`: loss {pairs['loss']}, beta {pairs['beta']:g}{beside}"
