"""Advantages with mean 0 and variance 1 over the global batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_token_tensors
from rlhf_ray.algorithms.equality import are_equal

_VARIANCE_EPSILON = 1e-8


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale the masked entries to mean 0 and variance 1.

        (x - mean) / sqrt(var + 1e-8),   var = sum (x - mean)^2 / (n - 1)

    Common practice in PPO for language models since Ziegler et al. 2019, Fine-Tuning Language
    Models from Human Preferences, arXiv:1909.08593.

    Conventions: mean and unbiased variance are those of the n masked entries, in float64, and
    the result is masked again. `values` must hold the GLOBAL batch: whitened per rank, the
    result would depend on the number of ranks. One entry alone becomes 0. Entries that are equal
    (`are_equal`) are only centred.

    Args:
        values [N], mask [N] bool.

    Returns:
        [N], dtype of `values`, 0 off the mask.
    """
    assert_token_tensors(mask, values=values)
    kept = values[mask].double()
    whitened = torch.zeros_like(values)
    if kept.numel() == 0:
        return whitened
    centred = kept - kept.mean()
    if are_equal(kept):
        whitened[mask] = centred.to(values.dtype)
        return whitened
    variance = centred.square().sum() / max(kept.numel() - 1, 1)
    whitened[mask] = (centred / torch.sqrt(variance + _VARIANCE_EPSILON)).to(values.dtype)
    return whitened


def whiten_by_task(values: Tensor, lengths: Tensor, mask: Tensor, tasks: Sequence[str]) -> Tensor:
    """`whiten`, for the samples of every task by themselves.

    Rewards of different tasks are on different scales; whitened together, the one with the
    widest spread would be all that is learnt.

    Args:
        values [N], lengths [S] int64 summing to N, mask [N] bool; tasks [S]: names.

    Returns:
        [N], dtype of `values`, 0 off the mask.
    """
    assert_token_tensors(mask, values=values)
    assert_lengths(lengths, mask.shape[0])
    assert len(tasks) == lengths.shape[0], f"{len(tasks)} tasks for {lengths.shape[0]} samples"
    whitened = torch.zeros_like(values)
    for task in dict.fromkeys(tasks):
        belongs = torch.tensor([name == task for name in tasks], device=mask.device)
        whitened += whiten(values, mask & torch.repeat_interleave(belongs, lengths))
    return whitened
