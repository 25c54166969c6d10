"""Over how many GPUs a model can be split."""

import pytest
from transformers import LlamaConfig, MixtralConfig

from atlas_ray.errors import InputError
from atlas_ray.models.split import check_split


def llama(heads, keys, wide=5040):
    return LlamaConfig(
        hidden_size=64 * heads, num_attention_heads=heads, num_key_value_heads=keys, intermediate_size=wide
    )


@pytest.mark.parametrize(
    ("config", "gpus", "what"),
    [
        (llama(9, 3), 2, "9 attention heads of m: it can be split over 1, 3"),
        (llama(24, 6), 4, "6 heads of keys and values of m: it can be split over 1, 2, 3, 6, 12"),
        (llama(24, 4), 3, "4 heads of keys and values"),
        (llama(32, 8, 11004), 8, "11004 columns"),
    ],
)
def test_unequal_shares_are_refused_with_the_numbers_that_fit(config, gpus, what):
    with pytest.raises(InputError) as refused:
        check_split(config, gpus, "m")
    assert refused.value.field == "engine.gpus" and what in str(refused.value)


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        (llama(9, 3), 1),
        (llama(32, 8), 8),
        (llama(32, 8), 16),  # each head of keys and values twice
        (MixtralConfig(num_attention_heads=32, num_key_value_heads=8, intermediate_size=14337), 8),
    ],
)
def test_equal_shares_are_not(config, gpus):
    check_split(config, gpus, "m")
