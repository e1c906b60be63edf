"""The loss of a reward model on pairs of answers (Bradley-Terry)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.preferences.pair_statistics import correct_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelLoss:
    """Loss and statistics of every pair, in float32 or wider; reduce each with `pair_share`.

    Attributes:
        per_pair [P]: the loss, with gradient; 0 off the mask.
        difference [P]: reward of the chosen less that of the rejected answer, without the
            margin; detached, 0 off the mask. See `calibration_bins`.
        correct [P]: 1, at a tie 1/2, else 0; detached, 0 off the mask.
    """

    per_pair: Tensor
    difference: Tensor
    correct: Tensor


def reward_model_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    margins: Tensor,
    mask: Tensor,
    *,
    centering: float = 0.0,
) -> RewardModelLoss:
    """Negative log-likelihood of the preference, per pair.

        loss = -log sigmoid(r_chosen - r_rejected - margin) + centering * (r_chosen + r_rejected)^2

    Bradley and Terry 1952, as a reward model's loss in Christiano et al. 2017, Deep
    Reinforcement Learning from Human Preferences, arXiv:1706.03741, section 2.2.3, and Stiennon
    et al. 2020, Learning to summarize from human feedback, arXiv:2009.01325, section 3.4. The
    margin, larger where the preference is clearer: Touvron et al. 2023, Llama 2,
    arXiv:2307.09288, equation 2. The centring, which settles the constant that differences
    leave open: Eisenstein et al. 2023, Helping or Herding?, arXiv:2312.09244.

    For rankings of more than two answers take the rewards at the places of `ranked_pairs`.

    Conventions: one reward per answer, as in TRL (`margin`, `center_rewards_coefficient`) and
    OpenRLHF. DeepSpeed-Chat has one per token and averages -log sigmoid over the positions from
    the first token that differs to the end of the longer answer, padding of the shorter one
    included; it knows no margin.

    Args:
        chosen_rewards [P], rejected_rewards [P] of the model in training, with gradient.
        margins [P]: constants; 0 for none. mask [P] bool: False on padding.
        centering: coefficient; 0 for none. TRL's documentation has 0.01 for the paper's.
    """
    assert_token_tensors(
        mask, chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards, margins=margins
    )
    assert_no_gradient(margins=margins)
    assert centering >= 0, f"centering is {centering}"
    wide = torch.promote_types(chosen_rewards.dtype, torch.float32)
    # Masked before the loss: 0 * NaN in the backward pass would be NaN.
    chosen, rejected, margins = (
        torch.where(mask, part.to(wide), 0.0)
        for part in (chosen_rewards, rejected_rewards, margins)
    )
    difference = chosen - rejected
    per_pair = -F.logsigmoid(difference - margins) + centering * (chosen + rejected).square()
    return RewardModelLoss(
        per_pair=torch.where(mask, per_pair, 0.0),
        difference=difference.detach(),
        correct=correct_pairs(difference, mask),
    )
