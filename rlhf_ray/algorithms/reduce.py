"""Reductions of a quantity per token to one number, by global counts."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_token_tensors
from rlhf_ray.algorithms.ragged import count_by_segment, segment_ids

_REDUCTIONS = ("token_mean", "sequence_mean", "sequence_sum", "constant_length")


def mean_share(values: Tensor, mask: Tensor, global_count: int) -> Tensor:
    """This micro-batch's share of the mean over all masked tokens of the optimiser step.

        sum over the mask of values / global_count

    Conventions: `global_count` counts the masked tokens of ALL ranks and micro-batches, so the
    plain SUM of the shares over ranks and micro-batches is the mean, whatever the split (the
    token mean of Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.3). An engine that averages
    gradients over ranks must multiply by their number. Without a masked token the result is
    0 with a gradient path (of zeros), so that a rank without work still joins the others'
    backward pass.

    Args:
        values [N] floating point or bool, mask [N] bool.

    Returns:
        a scalar.
    """
    if values.dtype == torch.bool:
        values = values.float()
    assert_token_tensors(mask, values=values)
    assert global_count >= 0, f"global_count is {global_count}"
    return torch.where(mask, values, 0.0).sum() / max(global_count, 1)


def reduce_tokens(
    values: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    reduction: str,
    num_tokens: int,
    num_sequences: int,
    constant_length: int,
) -> Tensor:
    """This micro-batch's share of the loss of the optimiser step.

        token_mean        sum over all tokens / num_tokens
        sequence_mean     mean over sequences of the mean over their tokens
        sequence_sum      mean over sequences of the sum over their tokens
        constant_length   sum over all tokens / (num_sequences * constant_length)

    In this order: Yu et al. 2025, DAPO, arXiv:2503.14476; Shao et al. 2024, GRPO,
    arXiv:2402.03300; Ahmadian et al. 2024, RLOO, arXiv:2402.14740; Liu et al. 2025, Dr. GRPO,
    arXiv:2503.20783. DAPO's equation 12 divides by the tokens of one prompt's answers and averages
    over prompts; `token_mean` divides by all tokens of the step.

    Conventions: the counts are global, as in `mean_share`; sequences without a masked token
    are not among them and leave every mean. All tokens of a sequence must be in this
    micro-batch.

    Args:
        values [N] floating point, lengths [S] int64 summing to N, mask [N] bool.
        num_tokens, num_sequences: of ALL ranks and micro-batches.
        constant_length: tokens, usually the longest answer allowed.

    Returns:
        a scalar.
    """
    assert reduction in _REDUCTIONS, f"reduction {reduction!r} is not in {_REDUCTIONS}"
    if reduction == "token_mean":
        return mean_share(values, mask, num_tokens)
    if reduction == "sequence_sum":
        return mean_share(values, mask, num_sequences)
    if reduction == "constant_length":
        assert constant_length > 0, f"constant_length is {constant_length}"
        return mean_share(values, mask, num_sequences * constant_length)
    assert_lengths(lengths, mask.shape[0])
    counts = count_by_segment(mask, lengths).clamp(min=1)[segment_ids(lengths)]
    # Masked before the division: a gradient of NaN / n would be NaN.
    return mean_share(torch.where(mask, values, 0.0) / counts, mask, num_sequences)
