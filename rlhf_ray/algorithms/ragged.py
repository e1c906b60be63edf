"""Sums, means and spreads between samples and their tokens in the ragged layout.

All functions are without a loop over samples and without padding: they work on the flat [N]
tokens and the number of the sample of each token, so a batch of a few long and many short answers
costs what its tokens cost.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_lengths, assert_token_tensors


def segment_ids(lengths: Tensor) -> Tensor:
    """Number of the segment of each entry: lengths [S] int64 -> [N] int64."""
    return torch.repeat_interleave(lengths)


def sum_by_segment(values: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Sum of the masked entries of each segment, in float64.

    Args:
        values [N], lengths [S] summing to N, mask [N] bool.

    Returns:
        [S] float64; 0 for a segment without a masked entry.
    """
    assert_token_tensors(mask, values=values)
    assert_lengths(lengths, mask.shape[0])
    # Float64, because a sum over thousands of tokens in float32 depends on the order of addition,
    # and with it on how samples were batched.
    kept = torch.where(mask, values.double(), 0.0)
    totals = torch.zeros(lengths.shape[0], dtype=torch.float64, device=values.device)
    return totals.index_add(0, segment_ids(lengths), kept)


def count_by_segment(mask: Tensor, lengths: Tensor) -> Tensor:
    """Number of masked entries of each segment: mask [N], lengths [S] -> [S] int64."""
    assert_token_tensors(mask)
    assert_lengths(lengths, mask.shape[0])
    counts = torch.zeros(lengths.shape[0], dtype=torch.int64, device=mask.device)
    return counts.index_add(0, segment_ids(lengths), mask.long())


def sequence_means(values: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Mean over a sequence's masked tokens, on each of these tokens, 0 elsewhere; with gradient.

    Args:
        values [N]: not read off the mask. lengths [S] summing to N, mask [N] bool.

    Returns:
        [N], dtype of `values`.
    """
    assert_token_tensors(mask, values=values)
    assert_lengths(lengths, mask.shape[0])
    segments = segment_ids(lengths)
    # Inputs are masked, not the result: 0 * NaN in the backward pass would be NaN.
    kept = torch.where(mask, values, 0.0)
    sums = values.new_zeros(lengths.shape[0]).index_add(0, segments, kept)
    # A sequence without a masked token has sum 0 and count 0; the clamp makes its mean 0, not NaN.
    means = sums / count_by_segment(mask, lengths).clamp(min=1)
    return torch.where(mask, means[segments], 0.0)


def spread_over_tokens(per_sample: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
    """Give every masked token its sample's value and every other token 0.

    Args:
        per_sample [S], lengths [S] summing to N, mask [N] bool.

    Returns:
        [N], dtype of `per_sample`.
    """
    assert_token_tensors(mask)
    assert_lengths(lengths, mask.shape[0])
    assert_floating("per_sample", per_sample, lengths.shape)
    return torch.where(mask, per_sample[segment_ids(lengths)], 0.0)


def last_masked_tokens(lengths: Tensor, mask: Tensor) -> Tensor:
    """True on the last masked token of each sample: lengths [S], mask [N] -> [N] bool.

    A sample without a masked token has none.
    """
    assert_token_tensors(mask)
    assert_lengths(lengths, mask.shape[0])
    # The largest masked position of each sample. An answer may end with unmasked tokens (tool
    # output, a template), so that it need not be the sample's last token.
    positions = torch.arange(mask.shape[0], device=mask.device)
    last = torch.full_like(lengths, -1).scatter_reduce(
        0, segment_ids(lengths)[mask], positions[mask], "amax"
    )
    # -1 is left where a sample has no masked token; it would index the last token of the batch.
    found = torch.zeros_like(mask)
    found[last[last >= 0]] = True
    return found
