"""Log-probabilities of chosen tokens from hidden states: logits exist for a chunk of rows only.

The logits of all predicted tokens [M, V] are the largest tensor of a training step: 0.8 GB for
4,096 tokens and a vocabulary of 49,152 in float32, and their gradient as much again. Here the
head runs on some rows after the other, and again on each of them in the backward pass.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_ray.training.ranks import largest_over_ranks
from rlhf_ray.training.token_logprobs import among_kept, token_logprobs

# Logits of one chunk. More chunks cost more: every one adds a gradient of the size of the head's
# weight to the sum. On a GPU half a gigabyte of bfloat16.
_CHUNK_ELEMENTS = {"cpu": 3 * 2**23, "cuda": 2**28}
# Up to so many logits are kept, a quarter of a gigabyte on a CPU: to compute the head again would
# cost more than the memory is worth.
_KEPT_ELEMENTS = {"cpu": 2**26, "cuda": 2**28}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadInputs:
    """What comes out of the decoder, and what is asked of it.

    Attributes:
        hidden [M, H]: the states that predict the targets.
        targets [M] int64.
        kept_token_ids [M, K] int32: see `MicroBatch`.
        temperature: divides the logits.
        entropy_gradient: the entropy has a gradient too.
    """

    hidden: Tensor
    targets: Tensor
    kept_token_ids: Tensor
    temperature: float
    entropy_gradient: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The end of a language model.

    Attributes:
        module: the output embedding, hidden states [M, H] to logits [M, V]. It is CALLED, never
            read: ZeRO-3 gathers its weight in hooks around the call.
        scale: what the model does to its logits after it.
        is_scaled: `scale` does anything.
        vocab_size: V.
    """

    module: nn.Module
    scale: Callable[[Tensor], Tensor]
    is_scaled: bool
    vocab_size: int

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [M, V] as the model gives them, of hidden states [M, H]."""
        return self.scale(self.module(hidden))


# Log-probabilities [M] with gradient, and entropies [M], with one where it is asked for.
HeadKernel = Callable[[HeadInputs], tuple[Tensor, Tensor]]


def head_kernel(name: str, head: Head) -> HeadKernel:
    """The implementation of this name for this head.

    Raises:
        ValueError: it cannot do what this head needs, or is not installed.
    """
    return _KERNELS[name](head)


def chunked(head: Head, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """In chunks of rows, whose logits the backward pass computes again.

    Every rank has the same number of chunks, because under ZeRO-3 a call of the head is a
    collective operation; those of a rank with fewer rows are smaller. One chunk alone is not
    computed again. The gradients of the head's weight are summed over chunks before DeepSpeed
    sees them, in the dtype of the weight.
    """
    elements = inputs.hidden.shape[0] * head.vocab_size
    device = inputs.hidden.device
    wanted = 1
    if elements > _KEPT_ELEMENTS[device.type]:
        wanted = -(-elements // _CHUNK_ELEMENTS[device.type])
    num_chunks = largest_over_ranks(wanted, device)

    def compute(hidden: Tensor, targets: Tensor, kept_token_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits, places = among_kept(head.logits(hidden), targets, kept_token_ids)
        return token_logprobs(
            logits,
            places,
            inputs.temperature,
            entropy_gradient=inputs.entropy_gradient,
        )

    def recomputed(*rows: Tensor) -> tuple[Tensor, Tensor]:
        # Nothing here draws random numbers.
        return checkpoint(compute, *rows, use_reentrant=False, preserve_rng_state=False)

    run = recomputed if num_chunks > 1 and torch.is_grad_enabled() else compute
    chunks = zip(
        inputs.hidden.tensor_split(num_chunks),
        inputs.targets.tensor_split(num_chunks),
        inputs.kept_token_ids.tensor_split(num_chunks),
        strict=True,
    )
    logprobs, entropies = zip(*(run(*rows) for rows in chunks), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def _liger(head: Head) -> HeadKernel:
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
        assert inputs.kept_token_ids.shape[1] == 0, "liger has no sets of kept tokens"
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
            f"rlhf_ray[liger], or set head_kernel to chunked"
        ) from error
    return operators.LigerFusedLinearScaledCrossEntropyFunction


_KERNELS: dict[str, Callable[[Head], HeadKernel]] = {
    "chunked": lambda head: partial(chunked, head),
    "liger": _liger,
}
