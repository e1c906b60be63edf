"""Log-probabilities of chosen tokens from hidden states: logits exist for a chunk of rows only.

The logits of all predicted tokens [M, V] are the largest tensor of a training step: 0.8 GB for
4,096 tokens and a vocabulary of 49,152 in float32, and their gradient as much again. Here the
head runs on some rows after the other, and again on each of them in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_ray.training.engine.ranks import largest_over_ranks
from rlhf_ray.training.forward.token_logprobs import (
    support_logprobs,
    token_logprobs,
    within_support,
)

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
        support_token_ids [M, K] int32: see `MicroBatch`.
        temperature: divides the logits.
        entropy_gradient: the entropy has a gradient too.
        over_support: compute log-probabilities [M, K] over the support, instead of the targets'.
    """

    hidden: Tensor
    targets: Tensor
    support_token_ids: Tensor | None
    temperature: float
    entropy_gradient: bool
    over_support: bool = False


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


# Log-probabilities [M] or [M, K], with gradient, and entropies [M], with one where asked for.
HeadKernel = Callable[[HeadInputs], tuple[Tensor, Tensor]]


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

    def compute(
        hidden: Tensor, targets: Tensor, support_token_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if inputs.over_support:
            logits = head.logits(hidden)
            return support_logprobs(logits, targets, support_token_ids, inputs.temperature)
        logits, places = within_support(head.logits(hidden), targets, support_token_ids)
        return token_logprobs(
            logits,
            places,
            inputs.temperature,
            entropy_gradient=inputs.entropy_gradient,
        )

    def recomputed(*rows: Tensor | None) -> tuple[Tensor, Tensor]:
        # Nothing here draws random numbers.
        return checkpoint(compute, *rows, use_reentrant=False, preserve_rng_state=False)

    run = recomputed if num_chunks > 1 and torch.is_grad_enabled() else compute
    support = inputs.support_token_ids
    supports = [None] * num_chunks if support is None else support.tensor_split(num_chunks)
    chunks = zip(
        inputs.hidden.tensor_split(num_chunks),
        inputs.targets.tensor_split(num_chunks),
        supports,
        strict=True,
    )
    logprobs, entropies = zip(*(run(*rows) for rows in chunks), strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
