"""The trained part of a model: patterns of names, layers, adapters, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
)

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.lora import LoraConfig
from rlhf_ray.config.groups.training import CriticConfig, TrainingConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.training.weights.lora import Adapter
from rlhf_ray.training.weights.lora_folder import scaled_weights
from rlhf_ray.training.weights.named import named_weights, weight_shapes
from rlhf_ray.training.weights.trainable import freeze_or_adapt_policy, freeze_or_adapt_scalar

TOKENS = torch.tensor([[3, 7, 1, 12, 5]])


class WholeWeights:
    """An engine whose weights are whole on every rank."""

    @contextmanager
    def gathered(self, tensors: Any) -> Iterator[None]:
        yield


ENGINE: Any = WholeWeights()


def llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(_config(tied))


def _config(tied: bool) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    ).eval()


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def learn(adapter: Adapter) -> None:
    """Give B random values, as training would."""
    generator = torch.Generator().manual_seed(1)
    for name, weight, _ in adapter.factors():
        if "lora_B" in name:
            with torch.no_grad():
                weight.normal_(std=0.5, generator=generator)


def adapted(model: PreTrainedModel, **settings: Any) -> Adapter:
    lora = LoraConfig(**({"r": 3, "alpha": 6} | settings))
    adapter = freeze_or_adapt_policy(model, TrainingConfig(lora=lora), seed=5)
    assert adapter is not None
    return adapter


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(input_ids=TOKENS).logits


class TestFreezing:
    def test_all_is_trained_by_default(self):
        model = llama()
        assert freeze_or_adapt_policy(model, TrainingConfig(), seed=0) is None
        assert trained(model) == names(model)

    def test_the_embedding_and_the_first_layers(self):
        model = llama(tied=False)
        freeze_or_adapt_policy(model, TrainingConfig(freeze_layers=1), seed=0)
        frozen = names(model) - trained(model)
        assert frozen == {"model.embed_tokens.weight"} | {
            name for name in names(model) if name.startswith("model.layers.0.")
        }

    def test_layers_under_another_name(self):
        model = gpt2()
        freeze_or_adapt_policy(model, TrainingConfig(freeze_layers=2), seed=0)
        assert trained(model) == {
            "transformer.wpe.weight",
            "transformer.ln_f.weight",
            "transformer.ln_f.bias",
        }

    def test_patterns_of_names(self):
        model = llama()
        freeze_or_adapt_policy(
            model, TrainingConfig(freeze=["model.layers.[1-9].mlp.*", "*norm.weight"]), seed=0
        )
        assert names(model) - trained(model) == {
            name for name in names(model) if ".1.mlp." in name or name.endswith("norm.weight")
        }

    def test_a_tied_head_is_the_embedding(self):
        model = llama()
        freeze_or_adapt_policy(model, TrainingConfig(freeze=["lm_head.*"]), seed=0)
        assert names(model) - trained(model) == {"model.embed_tokens.weight"}

    def test_a_backbone_has_the_names_of_its_language_model(self):
        model = ScalarHeadModel(LlamaModel(_config(True)), nn.Linear(8, 1, bias=False))
        freeze_or_adapt_scalar(
            model, CriticConfig(freeze_layers=1, freeze=["model.norm.weight"]), seed=0
        )
        frozen = names(model) - trained(model)
        assert {"backbone.norm.weight", "backbone.embed_tokens.weight"} < frozen
        assert "head.weight" in trained(model)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"freeze_layers": 3}, "training.freeze_layers=3: the model has 2 layers"),
            (
                {"freeze": ["layers.0.*"]},
                r"training.freeze=layers.0.\*: .* no weight of such a name.*model.embed_tokens",
            ),
            ({"freeze": ["*"]}, "leave nothing to train"),
        ],
    )
    def test_names_that_the_model_does_not_have_are_refused(self, settings, message):
        with pytest.raises(RequestError, match=message):
            freeze_or_adapt_policy(llama(), TrainingConfig(**settings), seed=0)

    def test_the_message_names_the_critic(self):
        model = ScalarHeadModel(LlamaModel(_config(True)), nn.Linear(8, 1, bias=False))
        with pytest.raises(RequestError, match=r"critic\.freeze_layers=3"):
            freeze_or_adapt_scalar(model, CriticConfig(freeze_layers=3), seed=0)


class TestAdapters:
    @pytest.mark.parametrize("make", [llama, gpt2])
    @pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"alpha": 1}])
    def test_merged_weights_compute_what_the_adapter_does(self, make, settings):
        model, plain = make(), make()
        adapter = adapted(model, **settings)
        start = logits(plain)
        assert torch.equal(logits(model), start), "B is 0"
        assert all(".lora_" in name for name in trained(model))
        learn(adapter)
        found = logits(model)
        assert (found - start).abs().max() > 1e-3
        state = dict(named_weights(ENGINE, model))
        assert {name: tuple(w.shape) for name, w in state.items()} == weight_shapes(plain)
        plain.load_state_dict(state, strict=False)
        torch.testing.assert_close(logits(plain), found, rtol=1e-5, atol=1e-5)

    def test_sent_weights_contain_the_scale(self):
        model = llama()
        adapter = adapted(model, r=4, alpha=6, rslora=True)
        learn(adapter)
        own = {name: (weight, scale) for name, weight, scale in adapter.factors()}
        assert {scale for name, (_, scale) in own.items() if "lora_B" in name} == {3.0}
        for name, tensor in scaled_weights(ENGINE, adapter):
            weight, scale = own[name.removeprefix("base_model.model.")]
            assert torch.equal(tensor, weight * scale)
            assert scale == (3.0 if "lora_B" in name else 1.0)

    def test_a_model_with_its_adapter_off_is_the_base_model(self):
        model = llama()
        start = logits(model)
        adapter = adapted(model)
        learn(adapter)
        before = trained(model)
        with adapter.off():
            assert torch.equal(logits(model), start)
        assert (logits(model) - start).abs().max() > 1e-3
        assert trained(model) == before

    def test_an_adapter_depends_on_the_seed_alone(self):
        torch.manual_seed(1)
        first = dict(llama().named_parameters()) and [w for _, w, _ in adapted(llama()).factors()]
        torch.rand(7)
        state = torch.get_rng_state()
        model = llama()
        torch.set_rng_state(state)
        second = [w for _, w, _ in adapted(model).factors()]
        assert torch.equal(torch.get_rng_state(), state), "the global random state has changed"
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        other = freeze_or_adapt_policy(llama(), TrainingConfig(lora=LoraConfig(r=3)), seed=6)
        assert other is not None
        factors = [w for name, w, _ in other.factors() if "lora_A" in name]
        assert not any(torch.equal(a, b) for a, b in zip(first[::2], factors, strict=True))

    def test_bfloat16_models_have_bfloat16_adapters(self):
        adapter = adapted(llama().to(torch.bfloat16))
        assert {weight.dtype for _, weight, _ in adapter.factors()} == {torch.bfloat16}

    def test_an_adapter_on_some_layers(self):
        adapter = adapted(llama(), target_modules=["q_proj", "layers.1.mlp.down_proj"])
        assert {name.rpartition(".lora_")[0] for name, _, _ in adapter.factors()} == {
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.down_proj",
        }

    @pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "query"])
    def test_layers_that_cannot_have_an_adapter_are_refused(self, target):
        with pytest.raises(RequestError, match=r"training\.lora\.target_modules=\['"):
            adapted(llama(tied=False), target_modules=[target])

    def test_an_adapter_with_a_scalar_head(self):
        model = ScalarHeadModel(LlamaModel(_config(True)), nn.Linear(8, 1, bias=False))
        settings = CriticConfig(lora=LoraConfig(r=2))
        adapter = freeze_or_adapt_scalar(model, settings, seed=0)
        assert adapter is not None
        heads = [name for name in trained(model) if ".lora_" not in name]
        assert heads == ["head.weight"]
        assert all(name.startswith("backbone.layers.") for name, _, _ in adapter.factors())
