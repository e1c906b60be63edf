"""Chunks of rows against the plain form: all logits at once, log_softmax, autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.gemma2 import Gemma2Config, Gemma2ForCausalLM

from rlhf_ray.training.forward import head_logprobs as module
from rlhf_ray.training.forward.head_logprobs import Head, HeadInputs, HeadOverRows
from rlhf_ray.training.forward.modules import PolicyForward, head_kernel

VOCABULARY, HIDDEN = 17, 6
TEMPERATURE = 0.7


class CountingHead(nn.Linear):
    """A head that records the number of rows of every call."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(HIDDEN, VOCABULARY, bias=False, dtype=dtype)
        self.rows: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        self.rows.append(input.shape[0])
        return super().forward(input)


def cap(logits: Tensor) -> Tensor:
    return torch.tanh(logits / 2.0) * 2.0


def make_head(dtype: torch.dtype = torch.float64) -> tuple[CountingHead, Head]:
    torch.manual_seed(3)
    linear = CountingHead(dtype)
    return linear, Head(module=linear, scale=cap, is_scaled=True, vocab_size=VOCABULARY)


def make_inputs(
    rows: int, *, dtype: torch.dtype = torch.float64, num_kept: int = 0, entropy: bool = True
) -> HeadInputs:
    generator = torch.Generator().manual_seed(rows)
    hidden = torch.randn(rows, HIDDEN, generator=generator, dtype=torch.float64).to(dtype)
    order = torch.rand(rows, VOCABULARY, generator=generator).argsort(dim=1)
    kept = order[:, :num_kept].int()
    if num_kept > 1:
        kept[::2, -1] = -1
    return HeadInputs(
        hidden=hidden.requires_grad_(),
        # Any token of the support.
        targets=order[:, 0],
        support_token_ids=kept if num_kept else None,
        temperature=TEMPERATURE,
        entropy_gradient=entropy,
    )


def plain(head: Head, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Ground truth: a mask over all logits, one log_softmax."""
    logits = cap(nn.functional.linear(inputs.hidden, head.module.get_parameter("weight")))
    if inputs.support_token_ids is not None:
        allowed = torch.zeros(logits.shape[0], VOCABULARY + 1, dtype=torch.bool)
        allowed.scatter_(1, inputs.support_token_ids.long() % (VOCABULARY + 1), True)
        logits = logits.masked_fill(~allowed[:, :VOCABULARY], -1e9)
    logprobs = (logits / inputs.temperature).log_softmax(dim=1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    return logprobs.gather(1, inputs.targets[:, None])[:, 0], entropy


def loss_of(logprobs: Tensor, entropy: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, logprobs.shape[0], dtype=logprobs.dtype)
    bonus = (entropy * weights.flip(0)).sum() if entropy.requires_grad else 0.0
    return (logprobs * weights).sum() + bonus


@pytest.fixture
def chunks_of_four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_ELEMENTS", {"cpu": 0})
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", {"cpu": 4 * VOCABULARY})


@pytest.mark.usefixtures("chunks_of_four_rows")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_kept", [0, 1, 5])
@pytest.mark.parametrize("rows", [1, 4, 5, 19])
def test_values_and_gradients_equal_the_plain_form(rows, num_kept, dtype):
    results = []
    for compute in (module.chunked, plain):
        linear, head = make_head(dtype)
        inputs = make_inputs(rows, dtype=dtype, num_kept=num_kept)
        logprobs, entropy = compute(head, inputs)
        loss_of(logprobs, entropy).backward()
        results.append((logprobs, entropy, inputs.hidden.grad, linear.weight.grad))
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=bound, atol=2 * bound)


@pytest.mark.usefixtures("chunks_of_four_rows")
def test_no_call_of_the_head_has_more_rows_than_a_chunk():
    linear, head = make_head()
    logprobs, _ = head_kernel("chunked", head)(make_inputs(19, entropy=False))
    assert linear.rows == [4, 4, 4, 4, 3]
    logprobs.sum().backward()
    # Again in the backward pass, from last to first.
    assert linear.rows[5:] == [3, 4, 4, 4, 4]


@pytest.mark.usefixtures("chunks_of_four_rows")
def test_without_gradients_nothing_is_computed_twice():
    linear, head = make_head()
    with torch.no_grad():
        logprobs, entropy = head_kernel("chunked", head)(make_inputs(19))
    assert len(linear.rows) == 5
    assert not logprobs.requires_grad
    expected, expected_entropy = plain(head, make_inputs(19))
    torch.testing.assert_close(logprobs, expected.detach())
    torch.testing.assert_close(entropy, expected_entropy.detach())


@pytest.mark.usefixtures("chunks_of_four_rows")
def test_one_chunk_alone_is_not_computed_again():
    linear, head = make_head()
    head_kernel("chunked", head)(make_inputs(4))[0].sum().backward()
    assert linear.rows == [4]


@pytest.mark.usefixtures("chunks_of_four_rows")
def test_all_rows_are_one_call_of_the_module_that_borrows_the_weight():
    """ZeRO-3 gathers a weight in hooks around the call of a module: once for all chunks."""
    linear, head = make_head()
    whole = HeadOverRows(head, head_kernel("chunked", head))
    calls, inner_calls = [], []
    whole.register_forward_pre_hook(lambda *_: calls.append(1))
    linear.register_forward_pre_hook(lambda *_: inner_calls.append(1))
    inputs = make_inputs(19)
    logprobs, entropy = whole(inputs.hidden, inputs.targets, None, TEMPERATURE, True, False)
    loss_of(logprobs, entropy).backward()
    assert (len(calls), len(inner_calls), len(linear.rows)) == (1, 0, 10)
    assert whole.borrowed_weights() == [linear.weight]
    # It owns none: the weight keeps the name that it has in the model.
    assert list(whole.parameters()) == []
    expected_linear, expected_head = make_head()
    expected = plain(expected_head, make_inputs(19))
    torch.testing.assert_close(logprobs, expected[0])
    loss_of(*expected).backward()
    torch.testing.assert_close(linear.weight.grad, expected_linear.weight.grad)


def test_the_head_of_a_tied_model_gets_both_gradients(monkeypatch):
    """The embedding is read at both ends of the model, at one of them in several chunks."""
    monkeypatch.setattr(module, "_KEPT_ELEMENTS", {"cpu": 0})
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", {"cpu": 2 * VOCABULARY})
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "pad_token_id": 0,
        "tie_word_embeddings": True,
    }
    models = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes)),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**sizes, head_dim=4, final_logit_softcapping=0.5)
        ),
    }
    for name, make in models.items():
        torch.manual_seed(0)
        model = make().double().eval()
        ids = torch.arange(3, 11)[None]
        logits = model(ids).logits[0, :-1] / TEMPERATURE
        logits.log_softmax(1).gather(1, ids[0, 1:, None]).sum().backward()
        expected = {key: p.grad.clone() for key, p in model.named_parameters()}
        model.zero_grad()
        logprobs, _ = PolicyForward(model)(ids, torch.arange(7), ids[0, 1:], TEMPERATURE, None)
        logprobs.sum().backward()
        assert "lm_head.weight" not in expected, name
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[key], rtol=1e-6, atol=1e-9)
