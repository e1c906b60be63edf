"""Monte-Carlo returns: discounted sums of a token's reward and all later rewards."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.advantages.gae import gae


def returns_to_go(rewards: Tensor, lengths: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """Return of every sampled token.

        G_t = r_t + gamma * G_{t+1}

    Williams 1992, Simple Statistical Gradient-Following Algorithms (REINFORCE); per token with
    the KL penalty in the reward, as REINFORCE++ uses it: Hu et al. 2025, arXiv:2501.03262.

    Conventions: those of `gae`, of which this is the case lambda 1 without a critic: t counts
    the sampled tokens, others are skipped and nothing is discounted across them.

    Args:
        rewards [N]: see `rewards.token_rewards`; lengths [S] int64, mask [N] bool.

    Returns:
        [N], dtype of `rewards`, 0 off the mask.
    """
    returns, _ = gae(rewards, torch.zeros_like(rewards), lengths, mask, gamma=gamma, gae_lambda=1.0)
    return returns
