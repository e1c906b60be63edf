"""Soft penalty on over-long responses, and a filter of truncated responses (DAPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_lengths, assert_token_tensors


def overlong_penalties(
    response_lengths: Tensor, *, max_tokens: int, buffer_tokens: int, penalty: float
) -> Tensor:
    """Penalty on the reward of each response for its length.

        0                                                 |y| <= L - B
        penalty * (|y| - (L - B)) / B                     L - B < |y| <= L
        penalty                                           L < |y|

    with L = `max_tokens`, the longest response, and B = `buffer_tokens`, the last part of it.
    Yu et al. 2025, DAPO, arXiv:2503.14476, equation 13 (soft over-long punishment, with penalty
    1 and the sign of a reward).

    Args:
        response_lengths [S] int64: sampled tokens per response.
        buffer_tokens: from 1 to `max_tokens`; 0 switches it off.

    Returns:
        [S] float64, from 0 to `penalty`; subtract it from the reward.
    """
    assert_lengths(response_lengths, int(response_lengths.sum()), "response_lengths")
    assert 0 <= buffer_tokens <= max_tokens, f"a buffer of {buffer_tokens} of {max_tokens} tokens"
    if buffer_tokens == 0:
        return torch.zeros_like(response_lengths, dtype=torch.float64)
    into_buffer = response_lengths.double() - (max_tokens - buffer_tokens)
    return penalty * (into_buffer / buffer_tokens).clamp(0.0, 1.0)


def without_truncated(mask: Tensor, lengths: Tensor, truncated: Tensor) -> Tensor:
    """The loss mask without the responses that were cut off (over-long filtering).

        mask'_t = mask_t * [the sample of t ended by itself]

    Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.4: the reward of a truncated response says
    little about its text, so its tokens leave the loss and the loss count. The reward stays part
    of the group's baseline.

    Args:
        mask [N] bool, lengths [S] int64 summing to N, truncated [S] bool.

    Returns:
        [N] bool.
    """
    assert_token_tensors(mask)
    assert_lengths(lengths, mask.shape[0])
    fits = truncated.dtype == torch.bool and truncated.shape == lengths.shape
    assert fits, (
        f"truncated must be torch.bool {list(lengths.shape)}, not {truncated.dtype} "
        f"{list(truncated.shape)}"
    )
    return mask & ~torch.repeat_interleave(truncated, lengths)
