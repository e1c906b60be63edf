"""Liger-Kernel's fused head, the real one, against the chunks."""

from __future__ import annotations

import logging
from functools import partial
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.training.forward.fused_head import LigerOrChunks, liger
from rlhf_ray.training.forward.head_logprobs import Head, HeadInputs, HeadKernel, chunked
from rlhf_ray.training.forward.modules import head_kernel

ROWS, HIDDEN, VOCABULARY = 512, 1024, 32_064


def make_head(dtype: torch.dtype, vocabulary: int = VOCABULARY) -> Head:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(HIDDEN, vocabulary, bias=False)
    with torch.no_grad():
        linear.weight.normal_(std=0.05, generator=generator)
    return Head(
        module=linear.to("cuda", dtype), scale=lambda x: x, is_scaled=False, vocab_size=vocabulary
    )


def make_inputs(dtype: torch.dtype, rows: int = ROWS) -> HeadInputs:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, generator=generator)
    return HeadInputs(
        hidden=hidden.to("cuda", dtype).requires_grad_(True),
        targets=torch.randint(VOCABULARY, (rows,), generator=generator).cuda(),
        support_token_ids=None,
        temperature=0.7,
        entropy_gradient=True,
    )


def both_ways(kernel: HeadKernel, head: Head, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    inputs.hidden.grad = None
    head.module.zero_grad()
    logprobs, entropies = kernel(inputs)
    factors = torch.linspace(0.5, 1.5, logprobs.shape[0], device="cuda")
    (factors * (logprobs + 0.3 * entropies)).sum().backward()
    return logprobs.detach(), entropies.detach()


def results_of(kernel: HeadKernel, head: Head, inputs: HeadInputs) -> list[Tensor]:
    """Log-probabilities, entropies, gradients of the hidden states and of the weight."""
    results = both_ways(kernel, head, inputs)
    gradients = inputs.hidden.grad, head.module.get_parameter("weight").grad
    assert all(gradient is not None for gradient in gradients)
    return [*results, *(gradient.float() for gradient in gradients if gradient is not None)]


def test_the_fused_head_gives_what_the_chunks_give():
    head = make_head(torch.bfloat16)
    expected = results_of(partial(chunked, head), head, make_inputs(torch.bfloat16))
    found = results_of(liger(head), head, make_inputs(torch.bfloat16))
    for right, other in zip(expected, found, strict=True):
        scale = float(right.abs().max())
        assert float((right - other).abs().max()) <= 0.02 * scale


def test_auto_takes_the_chunks_in_float32(caplog):
    """On Hopper the operator (liger-kernel 0.8.5) knows bfloat16 only."""
    head = make_head(torch.float32)
    expected = results_of(partial(chunked, head), head, make_inputs(torch.float32))
    found = results_of(head_kernel("auto", head), head, make_inputs(torch.float32))
    for right, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, right, rtol=1e-4, atol=1e-5)
    assert "runs in chunks" in caplog.text


def test_auto_takes_the_fused_head_in_bfloat16(caplog):
    head = make_head(torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        kernel = head_kernel("auto", head)
        kernel(make_inputs(torch.bfloat16))
    assert isinstance(kernel, LigerOrChunks)
    assert "runs in chunks" not in caplog.text


@pytest.mark.parametrize("name", ["liger", "chunked"])
def test_memory_of_the_head_against_all_logits(name):
    rows, vocabulary = 8_192, 49_152
    head = make_head(torch.bfloat16, vocabulary)
    kernels = {"all logits at once": plain(head), name: head_kernel(name, head)}
    costs = {
        n: cost(kernel, head, make_inputs(torch.bfloat16, rows)) for n, kernel in kernels.items()
    }
    for kernel, (peak, milliseconds) in costs.items():
        print(f"{kernel}: {peak / 2**20:.0f} MiB above the weights, {milliseconds:.2f} ms")
    largest = costs["all logits at once"][0] * (0.25 if name == "liger" else 0.5)
    assert costs[name][0] <= largest


def plain(head: Head) -> HeadKernel:
    def compute(inputs: HeadInputs) -> tuple[Tensor, Tensor]:
        logprobs = (head.logits(inputs.hidden).float() / inputs.temperature).log_softmax(dim=1)
        entropies = -(logprobs.exp() * logprobs).sum(dim=1)
        return logprobs.gather(1, inputs.targets[:, None])[:, 0], entropies

    return compute


def cost(kernel: HeadKernel, head: Head, inputs: HeadInputs) -> tuple[int, float]:
    """Bytes of the peak above what was there, and milliseconds (median of 9), both ways."""
    both_ways(kernel, head, inputs)
    head.module.zero_grad()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        both_ways(kernel, head, inputs)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return torch.cuda.max_memory_allocated() - before, median(times)
