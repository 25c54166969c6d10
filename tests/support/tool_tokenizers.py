"""Tokenizers with chat templates that know tools, made by us after the behaviour of model families."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"]
FAMILIES = {  # beginning and end of sequence, the end of a turn, special tokens
    "qwen2.5": (None, "<|im_end|>", "<|im_end|>", CHATML),
    "qwen3": (None, "<|im_end|>", "<|im_end|>", CHATML),
    "llama-3.1": ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", LLAMA),
    "hermes": (None, "<|im_end|>", "<|im_end|>", CHATML),
}
TEMPLATES = Path(__file__).parent / "templates"


def core():
    """Byte-level BPE that cuts text into words first, as the models of these families do."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(['{"name": "bash", "arguments": {"command": "ls"}} user assistant a.py'] * 5, trainer)
    return made


CORE = core().to_str()


def tokenizer_of(family, template=None):
    begin, end, _, specials = FAMILIES[family]
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(CORE))
    made.add_tokens(specials, special_tokens=True)
    made.add_tokens(["<tool_call>", "</tool_call>"])  # tokens of their own, and no special ones
    made.bos_token, made.eos_token = begin, end
    made.chat_template = (TEMPLATES / f"tools-{family}.jinja").read_text() if template is None else template
    return made


def model_with_tools(path, family="qwen2.5", template=None):
    """A directory with a small model of random weights and such a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tokenizer_of(family, template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
