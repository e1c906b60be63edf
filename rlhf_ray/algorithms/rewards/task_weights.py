"""Weights of tasks in the advantages of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths, assert_token_tensors
from rlhf_ray.algorithms.ragged import spread_over_tokens


def weigh_advantages(advantages: Tensor, weights: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Advantages times the weight of their sample's task.

        A'_t = w_task * A_t

    The gradient is then that of the weighted sum of the tasks' objectives, sum_k w_k J_k, the
    scalarisation of multi-objective problems (Roijers et al. 2013, arXiv:1402.0590).
    Counts stay as they are: a weight of 2 doubles the step that a task asks for and does not
    shrink the steps of the others. It comes after whitening,
    which would undo a weight that all samples share.

    Args:
        advantages [N], weights [S], lengths [S] summing to N, mask [N] bool.

    Returns:
        [N], dtype of `advantages`; 0 off the mask.
    """
    assert_token_tensors(mask, advantages=advantages)
    assert_lengths(lengths, mask.shape[0])
    assert_floating("weights", weights, lengths.shape)
    factors = spread_over_tokens(weights.to(advantages.dtype), lengths, mask)
    # A weight of 0 must remove the sample whatever its advantage is.
    return torch.where(mask & (factors != 0), advantages * factors, 0.0)
