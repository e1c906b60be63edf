"""Liger-Kernel's fused head and cross-entropy in the place of the chunks."""

from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.training.engine.ranks import largest_over_ranks
from rlhf_ray.training.forward.head_logprobs import Head, HeadInputs, HeadKernel, chunked

_logger = logging.getLogger(__name__)

_ROWS_COMPARED = 32


def liger(head: Head) -> HeadKernel:
    """Liger-Kernel's fused head and cross-entropy, which writes no logit to memory on Hopper.

    `LigerFusedLinearScaledCrossEntropyFunction` (liger-kernel 0.8.5) gives the negative
    log-probability of every row in float32 and its entropy, and takes a gradient for each row. It
    reads the head's weight, which ZeRO-3 would have to gather, and normalises over the whole
    vocabulary; rules of the configuration keep both away from here.
    """
    function, weight = _liger_function(), head.module.get_parameter("weight")
    if not isinstance(head.module, nn.Linear) or head.module.bias is not None or head.is_scaled:
        raise ValueError(
            "head_kernel=liger knows heads without a bias and without scaled logits only, and "
            "this model's is another: set head_kernel to chunked"
        )
    ignored_target, tiles_per_cluster, with_entropy = -100, 1, True

    def compute(inputs: HeadInputs) -> tuple[Tensor, Tensor]:
        assert inputs.support_token_ids is None, "liger knows the whole vocabulary only"
        negative, entropy = function.apply(
            inputs.hidden,
            weight,
            inputs.targets,
            inputs.temperature,
            ignored_target,
            tiles_per_cluster,
            with_entropy,
        )
        entropy = entropy.float()
        return -negative, entropy if inputs.entropy_gradient else entropy.detach()

    return compute


def _liger_function() -> Any:
    """Imported where it is used: it needs triton, and on Hopper its own extra `cutedsl`."""
    try:
        operators = importlib.import_module("liger_kernel.ops")
    except ImportError as error:
        raise ValueError(
            f"head_kernel=liger needs Liger-Kernel, which cannot be imported ({error}): install "
            f"rlhf_ray[gpu], or set head_kernel to chunked"
        ) from error
    return operators.LigerFusedLinearScaledCrossEntropyFunction


class LigerOrChunks:
    """The fused operator where it gives what the chunks give; the chunks elsewhere.

    Its first call compares the two, values and gradients, on some of its rows. All ranks decide
    alike, because the chunks are a collective operation.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._chosen: HeadKernel | None = None

    def __call__(self, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
        if self._chosen is None:
            self._chosen = self._choose(inputs)
        return self._chosen(inputs)

    def _choose(self, inputs: HeadInputs) -> HeadKernel:
        in_chunks = partial(chunked, self._head)
        rows = slice(0, _ROWS_COMPARED)
        support = inputs.support_token_ids
        few = replace(
            inputs,
            hidden=inputs.hidden[rows].detach(),
            targets=inputs.targets[rows],
            support_token_ids=support if support is None else support[rows],
            entropy_gradient=True,
        )
        expected = _with_gradient(in_chunks, few)
        problem = ""
        try:
            fused = liger(self._head)
            problem = _difference(expected, _with_gradient(fused, few))
        # What a kernel raises on a GPU that it does not know is nobody's to list.
        except Exception as error:  # noqa: BLE001
            problem = f"{type(error).__name__}: {error}"
        if problem:
            _logger.warning("the head runs in chunks, without Liger-Kernel: %s", problem)
        if largest_over_ranks(int(bool(problem)), inputs.hidden.device):
            return in_chunks
        return fused


@torch.enable_grad()
def _with_gradient(kernel: HeadKernel, inputs: HeadInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities [M], entropies [M], and the gradient [M, H] of both with other weights."""
    hidden = inputs.hidden.clone().requires_grad_(True)
    logprobs, entropies = kernel(replace(inputs, hidden=hidden))
    factors = torch.linspace(0.5, 1.5, logprobs.shape[0], device=hidden.device)
    # Of the hidden states alone: that of the head's weight belongs to the optimiser step.
    (gradient,) = torch.autograd.grad((factors * (logprobs + 0.3 * entropies)).sum(), hidden)
    return logprobs.detach(), entropies.detach(), gradient


def _difference(expected: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> str:
    """What is not alike; empty where only rounding differs."""
    names = ("log-probabilities are", "entropies are", "gradient is")
    for name, right, other in zip(names, expected, found, strict=True):
        difference = float((right.double() - other.double()).abs().max())
        bound = 0.02 * float(right.double().abs().max()) + 1e-5
        if not difference <= bound:
            return f"its {name} off by {difference:.3g} (at most {bound:.3g} is rounding)"
    return ""
