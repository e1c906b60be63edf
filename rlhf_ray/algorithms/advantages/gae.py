"""Generalised advantage estimation over the sampled tokens of each sample (PPO)."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import (
    assert_floating,
    assert_lengths,
    assert_no_gradient,
    assert_token_tensors,
)
from rlhf_ray.algorithms.ragged import count_by_segment, segment_ids


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of every sampled token.

        delta_t = r_t + gamma * V_{t+1} - V_t
        A_t     = delta_t + gamma * lambda * A_{t+1}
        R_t     = A_t + V_t

    Schulman et al. 2015, High-Dimensional Continuous Control Using Generalized Advantage
    Estimation, arXiv:1506.02438, equations 11 and 16.

    Conventions: t counts the SAMPLED tokens of one sample. Tokens off the mask (prompt, tool
    or environment text) are skipped: value and advantage are carried across them and nothing
    is discounted. `values[i]` is the value of the state in which `token_ids[i]` was chosen,
    that is of everything before it. The value after the last sampled token is 0, because the
    answer is over, or `bootstrap` where it was cut off and would have gone on (Pardo et al.
    2018, Time Limits in Reinforcement Learning, arXiv:1712.00378). Computed in float64.

    Args:
        rewards [N]: see `rewards.token_rewards`; the outcome is on the last sampled token.
        values [N], mask [N] bool, lengths [S] int64 summing to N.
        bootstrap [S]: value of the state after each sample's last token; None means 0.

    Returns:
        (advantages [N], returns [N]), dtype of `values`, 0 off the mask.
    """
    _check(rewards, values, lengths, mask, bootstrap)
    # The sampled tokens alone, one row per sample. Zeros to the right of a row are what the
    # recursion starts from: reward, value and advantage after the end are 0.
    rows = segment_ids(lengths)[mask]
    counts = count_by_segment(mask, lengths)
    first = counts.cumsum(0) - counts
    columns = torch.arange(rows.shape[0], device=rows.device) - first[rows]
    num_columns = int(counts.max()) if counts.numel() else 0
    shape = (lengths.shape[0], num_columns)
    row_rewards = torch.zeros(shape, dtype=torch.float64, device=values.device)
    row_rewards[rows, columns] = rewards[mask].double()
    row_values = torch.zeros_like(row_rewards)
    row_values[rows, columns] = values[mask].double()

    next_values = torch.nn.functional.pad(row_values, (0, 1))[:, 1:]
    if bootstrap is not None:
        answered = counts > 0
        next_values[answered, counts[answered] - 1] = bootstrap[answered].double()
    deltas = row_rewards + gamma * next_values - row_values
    row_advantages = _discounted_sums(deltas, gamma * gae_lambda)

    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantages[mask] = row_advantages[rows, columns].to(values.dtype)
    returns[mask] = (row_advantages + row_values)[rows, columns].to(values.dtype)
    return advantages, returns


def _discounted_sums(deltas: Tensor, discount: float) -> Tensor:
    """Discounted sums of every row [S, T], from each column to the right end."""
    sums = torch.zeros_like(deltas)
    carried = deltas.new_zeros(deltas.shape[0])
    for column in reversed(range(deltas.shape[1])):
        carried = deltas[:, column] + discount * carried
        sums[:, column] = carried
    return sums


def _check(
    rewards: Tensor, values: Tensor, lengths: Tensor, mask: Tensor, bootstrap: Tensor | None
) -> None:
    assert_token_tensors(mask, rewards=rewards, values=values)
    assert_lengths(lengths, mask.shape[0])
    assert_no_gradient(rewards=rewards, values=values)
    if bootstrap is not None:
        assert_floating("bootstrap", bootstrap, lengths.shape)
        assert_no_gradient(bootstrap=bootstrap)
