"""Attention that can be divided over ranks, and attention that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.parallelism import check_divisible, division_problem


@pytest.mark.parametrize(
    ("heads", "kv_heads", "sizes"),
    [
        (8, 8, [1, 2, 4, 8]),
        (8, 2, [1, 2, 4, 8]),
        # Qwen2.5-7B: 28 heads and 4 key-value heads.
        (28, 4, [1, 2, 4, 28]),
        (12, 3, [1, 3, 6, 12]),
    ],
)
def test_sizes_that_divide_heads(heads: int, kv_heads: int, sizes: list[int]) -> None:
    config = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    fine = [size for size in range(1, heads + 1) if not division_problem(config, size)]
    assert fine == sizes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"kv_lora_rank": 512}, "no heads of its own"),
        ({"num_attention_heads": None}, "no heads of its own"),
    ],
)
def test_attention_that_sees_less_or_has_no_heads(fields, words: str) -> None:
    config = {"num_attention_heads": 4, "num_key_value_heads": 2} | fields
    assert words in division_problem(config, 2)


def test_a_window_that_no_layer_uses_is_fine() -> None:
    layers = {"layer_types": ["full_attention"], "sliding_window": 4096}
    assert not division_problem({"num_attention_heads": 4, **layers}, 2)


def test_the_message_names_role_model_and_sizes(copy: Path) -> None:
    model = ModelConfig(path=str(copy))
    check_divisible(model, 2, key="critic.path", role="critic")
    with pytest.raises(RequestError, match=r"critic.sequence_parallel_size=3: critic.path is .*1"):
        check_divisible(model, 3, key="critic.path", role="critic")
