"""Random weights made part by part, for architectures with unlike layers and tied heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3MoeConfig,
)

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.unloaded.parts import RealTensors, model_parts
from rlhf_ray.models.unloaded.random_weights import new_policy, unmade_policy

SIZES = {
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "pad_token_id": 0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**SIZES),
    # Its class makes the weights of two of its layers' children by itself.
    "gpt2": GPT2Config(vocab_size=40, n_embd=64, n_layer=4, n_head=2, n_positions=32),
    "mixture of experts": Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
}


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    CONFIGS[request.param].save_pretrained(tmp_path)
    return ModelConfig(path=str(tmp_path), random_weights=True)


def test_weights_are_those_that_transformers_would_draw(model):
    """Not the same numbers, but the same spread of every tensor, and the same buffers."""
    made = new_policy(model, dtype="float32", seed=3)
    torch.manual_seed(4)
    config = type(made.config).from_pretrained(model.path)
    expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    mine, theirs = ({n: p.detach() for n, p in m.named_parameters()} for m in (made, expected))
    assert mine.keys() == theirs.keys(), "tied weights are tied"
    for name, weight in theirs.items():
        spread = float(weight.float().std()) if weight.numel() > 1 else 0.0
        assert float(mine[name].std()) == pytest.approx(spread, rel=0.35, abs=1e-6), name
        assert float(mine[name].mean()) == pytest.approx(float(weight.mean()), abs=0.01), name
    for name, buffer in expected.named_buffers():
        assert torch.equal(dict(made.named_buffers())[name], buffer), name


def test_a_part_can_be_taken_away_before_the_next_is_made(model):
    """Sharding empties each part at once: the later ones are the same as without it."""
    whole = {n: p.clone() for n, p in new_policy(model, dtype="float32", seed=3).named_parameters()}
    made, weights = unmade_policy(model, dtype="float32", seed=3)
    names = {}
    taken = {}
    for part in model_parts(made):
        weights.fill(part)
        names = {id(p): name for name, p in made.named_parameters()}
        for module in part:
            for parameter in module.parameters(recurse=False):
                if parameter.numel():
                    taken[names[id(parameter)]] = parameter.detach().clone()
                    parameter.data = torch.empty(0)
    assert taken.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(taken[name], weight), name


def test_parts_are_layers_and_the_rest():
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(CONFIGS["llama"])
    *layers, rest = model_parts(made)
    assert [part[-1] for part in layers] == list(made.model.layers)
    assert {type(m).__name__ for m in rest} >= {"Embedding", "Linear", "LlamaForCausalLM"}
    flat = [module for part in (*layers, rest) for module in part]
    assert sorted(map(id, flat)) == sorted(map(id, made.modules())), "each module once"


def test_tied_tensors_stay_tied():
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(CONFIGS["llama, tied"])
    made.lm_head.weight.requires_grad_(False)
    real = RealTensors(torch.device("cpu"))
    for module in made.modules():
        real.replace_in([module])
    assert made.lm_head.weight is made.model.embed_tokens.weight
    assert not made.lm_head.weight.requires_grad
    assert not any(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
