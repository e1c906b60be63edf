"""Log-probabilities of given tokens from hidden states, with the logits of one chunk at a time.

The logits of all predicted tokens [M, V] are the largest tensor of a training step: 0.8 GB for
4,096 tokens and a vocabulary of 49,152 in float32, and as much again for their gradient. Here the
head runs on one chunk of rows after the other, and again on each of them in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_ray.training.engine.shards import WeightBorrower
from rlhf_ray.training.forward.token_logprobs import (
    support_logprobs,
    token_logprobs,
    within_support,
)

# Logits of one chunk; on a GPU half a gigabyte of bfloat16. Smaller chunks would cost time: each
# chunk adds a gradient of the size of the head's weight to the sum.
_CHUNK_ELEMENTS = {"cpu": 3 * 2**23, "cuda": 2**28}
# Up to this number, logits are kept for the backward pass (a quarter of a gigabyte on a CPU):
# running the head again would cost more than the memory is worth.
_KEPT_ELEMENTS = {"cpu": 2**26, "cuda": 2**28}


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadInputs:
    """Output of the decoder and the tokens to score.

    Attributes:
        hidden [M, H]: the states that predict the targets.
        targets [M] int64.
        support_token_ids [M, K] int32: see `MicroBatch`.
        temperature: divides the logits.
        entropy_gradient: whether the entropy has a gradient too.
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
    """The output head of a language model.

    Attributes:
        module: the output embedding, hidden states [M, H] to logits [M, V].
        scale: the model's scaling of its logits.
        is_scaled: whether `scale` changes anything.
        vocab_size: V.
    """

    module: nn.Module
    scale: Callable[[Tensor], Tensor]
    is_scaled: bool
    vocab_size: int

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's logits [M, V] of hidden states [M, H]."""
        # Not a call of the module: ZeRO-3's hooks around it would gather and release the weight
        # for every chunk of rows. `HeadOverRows` has gathered it for all of them.
        return self.scale(self.module.forward(hidden))


# Computes log-probabilities [M] or [M, K] with gradient, and entropies [M] with one if asked for.
HeadKernel = Callable[[HeadInputs], tuple[Tensor, Tensor]]


class HeadOverRows(WeightBorrower):
    """The output head on all rows of a micro-batch, in one call.

    Under ZeRO-3 its weight is gathered twice in a training pass, before the forward and before the
    backward part, however many chunks of rows there are: 2.5 GB each time for a 72B model.

    Args:
        kernel: of this head.
    """

    def __init__(self, head: Head, kernel: HeadKernel) -> None:
        super().__init__()
        # Not a submodule: its weight has one name, that in the model.
        self._head = head
        self._kernel = kernel

    def borrowed_weights(self) -> Sequence[nn.Parameter]:
        return list(self._head.module.parameters())

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        support_token_ids: Tensor | None,
        temperature: float,
        entropy_gradient: bool,
        over_support: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run the kernel; see `HeadInputs`. Plain tensors, because ZeRO-3 looks for them."""
        return self._kernel(
            HeadInputs(
                hidden=hidden,
                targets=targets,
                support_token_ids=support_token_ids,
                temperature=temperature,
                entropy_gradient=entropy_gradient,
                over_support=over_support,
            )
        )


def chunked(head: Head, inputs: HeadInputs) -> tuple[Tensor, Tensor]:
    """Run the head on chunks of rows; the backward pass computes their logits again.

    A single chunk is not computed again. The gradients of the head's weight are summed over chunks
    before DeepSpeed sees them, in the dtype of the weight.
    """
    elements = inputs.hidden.shape[0] * head.vocab_size
    device = inputs.hidden.device
    num_chunks = 1
    if elements > _KEPT_ELEMENTS[device.type]:
        num_chunks = -(-elements // _CHUNK_ELEMENTS[device.type])

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
        # The head draws no random numbers, so the random state need not be saved.
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
