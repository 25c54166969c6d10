"""Layers that see a window or a chunk of the text: what the engine keeps of it gives the scores of a plain pass."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from atlas_ray.engines import TransformersEngine
from atlas_ray.models.tiny import build_tokenizer

TEXT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": 2,
}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MIXED = {**TEXT, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
KINDS = {
    "mistral": {**TEXT, "sliding_window": 6},
    "phi3": {**TEXT, "sliding_window": 6},
    "qwen2": {**MIXED, "use_sliding_window": True},
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "gemma3": {"text_config": MIXED, "vision_config": VISION},
    "cohere2": {**TEXT, "sliding_window": 6, "layer_types": ["sliding_attention", "sliding_attention"]},
    "llama": TEXT,
}


def model_of(kind, attention):
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **KINDS[kind])
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(std=0.3)
    return model


def plain(model, prompt, candidates):
    with torch.inference_mode():
        logps = [model(input_ids=torch.tensor([[*prompt, *c]])).logits[0].float().log_softmax(-1) for c in candidates]
    return torch.stack(
        [sum(p[len(prompt) + i - 1, t] for i, t in enumerate(c)) for p, c in zip(logps, candidates, strict=True)]
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_of_a_text_gives_the_scores_of_a_plain_pass(kind, attention):
    model = model_of(kind, attention)
    rng = torch.Generator().manual_seed(1)

    def tokens(count):
        return torch.randint(3, 97, (count,), generator=rng).tolist()

    texts = [tokens(14), tokens(3), tokens(9)]
    options = [[[15, 16, 40], [17, 18], [4]], [[20, 21], [22]], [[15], [15, 33, 34, 35]]]
    wanted: list[list[torch.Tensor]] = []
    rounds = []
    for _ in range(3):
        rounds.append([list(text) for text in texts])
        wanted.append([plain(model, text, o) for text, o in zip(texts, options, strict=True)])
        texts = [[*text, *tokens(n)] for text, n in zip(texts, (4, 9, 1), strict=True)]
    texts = [texts[0][:5] + tokens(3), *texts[1:]]  # another beginning: the slot is rewound
    rounds.append(texts)
    wanted.append([plain(model, text, o) for text, o in zip(texts, options, strict=True)])
    engine = TransformersEngine(model, 4, build_tokenizer())
    for texts, expected in zip(rounds, wanted, strict=True):
        for found, scores in zip(engine.score(texts, [0, 2, 3], options), expected, strict=True):
            assert torch.allclose(found, scores, atol=2e-4)
    [written] = engine.generate([rounds[-1][0]], [1], [2], 8)
    text = list(rounds[-1][0])
    for token in written:
        with torch.inference_mode():
            assert int(model(input_ids=torch.tensor([text])).logits[0, -1].argmax()) == token
        text.append(token)
