"""Models whose matrices can be held in slices, and models whose cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import (
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.tensor_plan import Style, check_sliceable, slicing_problem, tensor_plan

# Qwen2.5-7B and 72B.
SMALL = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4
)
LARGE = Qwen2Config(
    hidden_size=8192, intermediate_size=29568, num_attention_heads=64, num_key_value_heads=8
)


@pytest.mark.parametrize(("config", "sizes"), [(SMALL, [1, 2, 4]), (LARGE, [1, 2, 4, 8])])
def test_sizes_that_divide_heads_and_layers(config: PreTrainedConfig, sizes: list[int]) -> None:
    assert [size for size in range(1, 65) if not slicing_problem(config, size)] == sizes
    assert f"take one of {', '.join(map(str, sizes))}" in slicing_problem(config, 3)


@pytest.mark.parametrize("is_tied", [True, False])
def test_plan_of_layers_alone(is_tied: bool) -> None:
    plan = tensor_plan(LlamaConfig(tie_word_embeddings=is_tied))
    assert {name.split(".")[0] for name in plan} == {"layers"}
    assert plan["layers.*.self_attn.q_proj"] is Style.ROWS
    assert plan["layers.*.mlp.down_proj"] is Style.COLUMNS


def test_norms_of_heads_sum_their_gradient() -> None:
    assert tensor_plan(Qwen3Config())["layers.*.self_attn.q_norm"] is Style.SUMMED


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (GPT2Config(), "no plan of slices"),
        (MixtralConfig(), "a mixture of experts"),
        (Phi3Config(), "has colwise_gather_output, rowwise_split_input"),
        (Gemma3Config(), "a model of several parts"),
        (LlamaConfig(intermediate_size=11), "intermediate_size=11"),
    ],
)
def test_models_that_are_refused(config: PreTrainedConfig, words: str) -> None:
    assert words in slicing_problem(config, 2)


def test_the_message_names_role_model_and_sizes(copy: Path, edit: Callable[..., None]) -> None:
    edit(copy / "config.json", num_attention_heads=4, num_key_value_heads=2)
    model = ModelConfig(path=str(copy))
    check_sliceable(model, 2, key="critic.path", role="critic")
    with pytest.raises(RequestError, match=r"critic.tensor_parallel_size=3: critic.path is .*1"):
        check_sliceable(model, 3, key="critic.path", role="critic")
