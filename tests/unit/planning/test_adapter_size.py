"""The size of an adapter by arithmetic, against peft's layers on models without weights."""

from __future__ import annotations

import json

import pytest
from transformers import AutoConfig

from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.models.loading import empty_policy
from rlhf_ray.planning.adapter_size import adapter_weights
from rlhf_ray.training.weights.trainable import freeze_or_adapt_policy

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "olmo2", "smollm3")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("modules", [["all-linear"], ["o_proj", "mlp.down_proj"]])
def test_an_adapter_has_as_many_weights_as_peft_gives_it(tmp_path, family, modules):
    AutoConfig.for_model(family, **SIZES).save_pretrained(tmp_path)
    lora = LoraConfig(r=3, target_modules=modules)
    model = empty_policy(ModelConfig(path=str(tmp_path)))
    freeze_or_adapt_policy(model, TrainingConfig(lora=lora), seed=0)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert trained > 0
    values = json.loads((tmp_path / "config.json").read_text())
    assert adapter_weights(values, lora) == trained


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "other"},
        {"num_local_experts": 8},
        {"num_experts": 8},
        {"hidden_size": "wide"},
        {"intermediate_size": None},
        {"num_attention_heads": 0},
    ],
)
def test_what_is_not_known_is_not_guessed(changes):
    model = {"model_type": "llama", **SIZES, **changes}
    assert adapter_weights(model, LoraConfig(r=3)) is None
