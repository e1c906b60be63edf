"""Context lengths, as vLLM 0.32 derives them from the same configurations."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig, PreTrainedConfig

from rlhf_ray.models.context import context_of

QWEN = {"model_type": "qwen2", "max_position_embeddings": 32768}
LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}


def config(**fields: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (LLAMA, 4096),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        # The window moves along; positions go on behind it.
        (LLAMA | {"model_type": "mistral", "sliding_window": 1024}, 4096),
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 16384),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 8192),
        # These types describe how the length of the configuration was reached.
        (
            QWEN
            | {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            32768,
        ),
        (
            LLAMA
            | {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 512,
                }
            },
            4096,
        ),
        ({"model_type": "bloom"}, None),
        ({"model_type": "cohere", "max_position_embeddings": 8192, "model_max_length": 500}, 500),
    ],
)
def test_context(fields: dict[str, Any], expected: int | None) -> None:
    assert context_of(config(**fields)) == expected


def test_text_part_of_a_composite_model() -> None:
    text = {"model_type": "gemma3_text", "max_position_embeddings": 640}
    found = config(model_type="gemma3", text_config=text)
    assert context_of(found) == 640
