"""The fused head, with a stand-in for Liger's operator: the real one needs a GPU."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.training.forward import fused_head as module
from rlhf_ray.training.forward.fused_head import LigerOrChunks
from rlhf_ray.training.forward.head_logprobs import Head
from rlhf_ray.training.forward.modules import head_kernel
from tests.unit.training.forward.test_head_logprobs import (
    HIDDEN,
    TEMPERATURE,
    VOCABULARY,
    CountingHead,
    loss_of,
    make_head,
    make_inputs,
)


class FakeLiger:
    """Liger's operator in plain torch, after its documentation; can be made to be wrong."""

    calls: list[tuple]

    def __init__(self, *, logit_factor: float = 1.0, gradient_factor: float = 1.0) -> None:
        self.calls = []
        self._logit_factor = logit_factor
        self._gradient_factor = gradient_factor

    def apply(self, hidden, weight, target, temperature, ignored, tiles, return_entropy):
        self.calls.append((temperature, ignored, tiles, return_entropy))
        if self._gradient_factor != 1.0:
            factor = self._gradient_factor
            hidden = hidden * factor + (hidden * (1 - factor)).detach()
        logits = self._logit_factor * nn.functional.linear(hidden, weight) / temperature
        logprobs = logits.log_softmax(dim=1)
        entropy = -(logprobs.exp() * logprobs).sum(dim=1)
        negative = -logprobs.gather(1, target[:, None])[:, 0]
        return negative.float(), entropy.to(hidden.dtype)


@pytest.fixture
def fake_liger(monkeypatch: pytest.MonkeyPatch) -> FakeLiger:
    fake = FakeLiger()
    monkeypatch.setattr(module, "_liger_function", lambda: fake)
    return fake


def unscaled(linear: nn.Module) -> Head:
    return Head(module=linear, scale=lambda x: x, is_scaled=False, vocab_size=VOCABULARY)


@pytest.mark.parametrize("entropy", [False, True])
def test_liger_gives_what_the_chunks_give(fake_liger, entropy):
    linear = CountingHead(torch.float32)
    head = unscaled(linear)
    results = []
    for name in ("liger", "chunked"):
        linear.weight.grad = None
        inputs = make_inputs(9, dtype=torch.float32, entropy=entropy)
        logprobs, entropies = head_kernel(name, head)(inputs)
        assert entropies.requires_grad == entropy
        loss_of(logprobs, entropies).backward()
        results.append((logprobs, entropies, inputs.hidden.grad, linear.weight.grad))
    assert fake_liger.calls == [(TEMPERATURE, -100, 1, True)]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_liger_refuses_unsupported_heads(fake_liger):
    _, scaled = make_head()
    for head in (scaled, unscaled(nn.Linear(HIDDEN, VOCABULARY, bias=True))):
        with pytest.raises(ValueError, match="set head_kernel to chunked"):
            head_kernel("liger", head)


def test_the_message_says_that_liger_is_not_installed(monkeypatch):
    def absent(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(module, "importlib", SimpleNamespace(import_module=absent))
    with pytest.raises(ValueError, match=r"install rlhf_ray\[gpu\]"):
        head_kernel("liger", unscaled(nn.Linear(HIDDEN, VOCABULARY, bias=False)))


def chosen(monkeypatch: pytest.MonkeyPatch, fake: FakeLiger) -> tuple[list[Tensor], CountingHead]:
    """Results of two calls of `auto`, and the head that was called."""
    monkeypatch.setattr(module, "_liger_function", lambda: fake)
    linear = CountingHead(torch.float32)
    kernel = LigerOrChunks(unscaled(linear))
    return [kernel(make_inputs(40, dtype=torch.float32))[0] for _ in range(2)], linear


def test_auto_takes_the_operator_that_gives_the_same(monkeypatch, caplog):
    fake = FakeLiger()
    results, linear = chosen(monkeypatch, fake)
    # Once for the comparison, then once per call.
    assert len(fake.calls) == 3
    assert linear.rows == [32]
    assert linear.weight.grad is None
    expected = head_kernel("chunked", unscaled(linear))(make_inputs(40, dtype=torch.float32))[0]
    torch.testing.assert_close(results[0], expected)
    assert not caplog.records


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeLiger(logit_factor=1.3), "its log-probabilities are off by"),
        (FakeLiger(gradient_factor=0.5), "its gradient is off by"),
    ],
)
def test_auto_keeps_to_the_chunks_where_the_operator_is_wrong(monkeypatch, caplog, fake, reason):
    results, linear = chosen(monkeypatch, fake)
    assert len(fake.calls) == 1
    assert linear.rows == [32, 40, 40]
    assert reason in caplog.text
    expected = head_kernel("chunked", unscaled(linear))(make_inputs(40, dtype=torch.float32))[0]
    torch.testing.assert_close(results[1], expected)


def test_auto_keeps_to_the_chunks_where_the_operator_fails(monkeypatch, caplog):
    class Failing:
        def apply(self, *_):
            raise RuntimeError("no kernel image for this device")

    monkeypatch.setattr(module, "_liger_function", lambda: Failing())
    with caplog.at_level(logging.WARNING):
        LigerOrChunks(unscaled(CountingHead(torch.float32)))(make_inputs(3, dtype=torch.float32))
    assert "no kernel image for this device" in caplog.text


def test_auto_on_a_cpu_is_chunks():
    kernel = head_kernel("auto", unscaled(CountingHead(torch.float32)))
    assert not isinstance(kernel, LigerOrChunks)
