"""The policy's forward pass: the model's logits, at the positions of targets only."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import CohereConfig, CohereForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM
from transformers.models.granite import GraniteConfig, GraniteForCausalLM

from rlhf_ray.batching.layout import lay_out
from rlhf_ray.training.forward.modules import PolicyForward, ValueForward, disable_dropout

SIZES = {
    "vocab_size": 23,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gemma2 (soft cap)": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, final_logit_softcapping=0.02)
    ),
    "granite (divided)": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)),
    "cohere (multiplied)": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.2)),
}


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def test_equals_the_models_own_logits(model):
    """Right padding, no attention mask, several rows: the same as one sample at a time."""
    ids = torch.arange(3, 17)
    lengths = torch.tensor([5, 2, 7])
    mask = torch.tensor([i not in (0, 5, 7) for i in range(14)])
    batch = lay_out(ids, lengths, mask, None, [2, 0, 1])
    forward = PolicyForward(model)
    forward.check_head()
    with torch.no_grad():
        logprobs, entropy = forward(
            batch.input_ids, batch.hidden_index, batch.targets, 0.7, batch.support_token_ids
        )
        expected, expected_entropy = {}, {}
        for start, length in ((0, 5), (5, 2), (7, 7)):
            row = (model(ids[None, start : start + length]).logits[0] / 0.7).log_softmax(-1)
            for i in range(1, length):
                index = start + i
                expected[index] = row[i - 1, ids[index]]
                expected_entropy[index] = -(row[i - 1].exp() * row[i - 1]).sum()
    for values, truth in ((logprobs, expected), (entropy, expected_entropy)):
        wanted = torch.stack([truth[index] for index in batch.token_index.tolist()])
        torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-6)


def test_kept_tokens_and_the_gradient_of_the_entropy_reach_the_head(model):
    ids = torch.arange(3, 9)
    kept = torch.stack([ids, (ids + 5) % 23, torch.full_like(ids, -1)], dim=1).int()
    data = ids, torch.tensor([6]), torch.tensor([False] + [True] * 5), kept
    batch = lay_out(*data, [0])
    inputs = batch.input_ids, batch.hidden_index, batch.targets, 0.7, batch.support_token_ids
    logprobs, entropy = PolicyForward(model)(*inputs, entropy_gradient=True)
    logits = model(ids[None]).logits[0, :-1] / 0.7
    pairs = torch.stack([logits.gather(1, kept[1:, i : i + 1].long())[:, 0] for i in (0, 1)], 1)
    expected = pairs.log_softmax(dim=1)
    torch.testing.assert_close(logprobs, expected[:, 0], rtol=1e-5, atol=1e-6)
    expected_entropy = -(expected.exp() * expected).sum(dim=1)
    torch.testing.assert_close(entropy, expected_entropy, rtol=1e-5, atol=1e-6)
    weights = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(entropy.sum(), weights)
    for one, other in zip(found, torch.autograd.grad(expected_entropy.sum(), weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not PolicyForward(model)(*inputs)[1].requires_grad


class Scaled(nn.Module):
    """A model that multiplies its logits without a field in its configuration."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.inner = model
        self.config = model.config

    def get_decoder(self):
        return self.inner.get_decoder()

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **inputs):
        output = self.inner(**inputs)
        output.logits = output.logits * 1.1
        return output


def test_an_unknown_scaling_of_logits_is_refused():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    with pytest.raises(ValueError, match="Scaled does something to its logits"):
        PolicyForward(Scaled(model)).check_head()


def test_a_known_field_alone_is_not_enough():
    """The factor of the configuration is applied, and a wrong one is detected."""
    torch.manual_seed(0)
    model = GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=7.0)).eval()
    model.config.logits_scaling = 6.0
    forward = PolicyForward(model)
    model.config.logits_scaling = 7.0
    with pytest.raises(ValueError, match=r"Supported fields of a model.s configuration"):
        forward.check_head()


def test_values_are_float32_and_of_the_state_before():
    class Backbone(nn.Module):
        def forward(self, input_ids, use_cache):
            hidden = input_ids[..., None].to(torch.bfloat16) * torch.tensor([1.0, 0.5]).bfloat16()
            return type("Output", (), {"last_hidden_state": hidden})

    model = nn.Module()
    model.backbone = Backbone()
    model.head = nn.Linear(2, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(model.head.weight)
    values = ValueForward(model)(torch.tensor([[4, 6], [8, 0]]), torch.tensor([1, 2]))
    assert values.dtype == torch.float32
    assert values.tolist() == [9.0, 12.0]


def test_dropout_is_off_also_where_activations_are_recomputed():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.5))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    ids = torch.arange(3, 13)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    first = model(ids).logits
    assert torch.equal(first, model(ids).logits)
    recomputing = [layer for layer in model.model.layers if layer.training]
    assert len(recomputing) == 2
    first.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
