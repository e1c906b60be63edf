"""Copies of models with few layers, on which a role's checks run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3MoeConfig
from transformers.models.gemma2 import Gemma2Config
from transformers.models.granite import GraniteConfig

from rlhf_ray.batching.row_layout import row_layout
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.models.loading import empty_policy, empty_scalar_head
from rlhf_ray.models.unloaded import shallow as module
from rlhf_ray.models.unloaded.shallow import shallow_policy
from rlhf_ray.training.forward import trial
from rlhf_ray.training.forward.modules import PolicyForward
from rlhf_ray.training.forward.trial import try_backbone, try_policy

SIZES = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
CPU = torch.device("cpu")


def saved(folder: Path, config) -> ModelConfig:
    config.save_pretrained(folder)
    return ModelConfig(path=str(folder))


def copy_of(model: ModelConfig) -> nn.Module:
    whole = empty_policy(model, dtype="float32")
    return shallow_policy(model, whole.get_decoder(), dtype="float32", device=CPU)


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (LlamaConfig(**SIZES), 1),
        # Sliding windows in every other layer.
        (Gemma2Config(**SIZES, head_dim=8), 2),
        (
            Qwen3MoeConfig(
                **SIZES, num_experts=4, moe_intermediate_size=8, mlp_only_layers=[0, 1, 2]
            ),
            4,
        ),
    ],
    ids=["uniform", "two kinds of attention", "experts after three layers"],
)
def test_there_is_a_layer_of_every_kind(tmp_path, config, layers):
    model = saved(tmp_path, config)
    copy = copy_of(model)
    whole = empty_policy(model, dtype="float32")
    assert len(copy.model.layers) == layers
    kinds = [{module._kind(layer) for layer in m.model.layers} for m in (copy, whole)]
    assert kinds[0] == kinds[1]
    assert whole.config.num_hidden_layers == 6


def test_the_random_state_of_the_process_is_left_alone(tmp_path):
    model = saved(tmp_path, LlamaConfig(**SIZES))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    copy_of(model)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("cap", [30.0, 50.0])
def test_logits_are_large_enough_to_show_a_soft_cap(tmp_path, monkeypatch, tied, cap):
    config = Gemma2Config(
        **SIZES, head_dim=8, final_logit_softcapping=cap, tie_word_embeddings=tied
    )
    copy = copy_of(saved(tmp_path, config))
    PolicyForward(copy).check_head()
    # The model goes on capping, but its configuration no longer has the field.
    forward = PolicyForward.__new__(PolicyForward)
    fields = copy.config.to_dict()
    monkeypatch.setattr(copy.config, "to_dict", lambda: fields | {"final_logit_softcapping": None})
    forward.__init__(copy)
    with pytest.raises(ValueError, match="does something to its logits"):
        forward.check_head()


def test_a_known_scaling_passes(tmp_path):
    PolicyForward(copy_of(saved(tmp_path, GraniteConfig(**SIZES, logits_scaling=7.0)))).check_head()


def test_trials_never_run_the_model_itself(tmp_path, monkeypatch):
    """It may have no weights yet, and be in another place than it will be trained in."""
    model = saved(tmp_path, LlamaConfig(**SIZES))
    role = RoleConfig(dtype="float32", layout="packed", max_tokens_per_micro_batch=77)
    seen = []
    monkeypatch.setattr(trial, "training_device", lambda: seen.append(1) or CPU)
    for layout in (
        try_policy(empty_policy(model, dtype="float32"), model, role),
        try_backbone(empty_scalar_head(model, dtype="float32"), model, role),
    ):
        assert (layout.setting, layout.max_tokens) == ("packed", 77)
    assert len(seen) == 2, "the copies are on the training device"


def test_costs_are_those_of_the_whole_model(tmp_path):
    model = saved(tmp_path, LlamaConfig(**SIZES))
    role = RoleConfig(dtype="float32")
    deep = try_policy(empty_policy(model, dtype="float32"), model, role).costs
    whole = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert deep == row_layout(whole.get_decoder(), role, "sdpa").costs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_that_ignores_positions_is_padded(tmp_path, monkeypatch, dtype):
    """Its random weights are large enough that positions matter, also in bfloat16."""
    model = saved(tmp_path, LlamaConfig(**SIZES))
    original = AutoModelForCausalLM.from_config

    def without_positions(config, **options):
        made = original(config, **options)
        decoder = made.get_decoder()
        run = decoder.forward

        def forward(input_ids, position_ids=None, attention_mask=None, **options):
            del position_ids
            return run(input_ids=input_ids, attention_mask=attention_mask, **options)

        decoder.forward = forward
        return made

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", without_positions)
    role = RoleConfig(dtype=dtype, layout="packed")
    with pytest.raises(ValueError, match="hidden states are then off by"):
        try_policy(empty_policy(model, dtype=dtype), model, role)
