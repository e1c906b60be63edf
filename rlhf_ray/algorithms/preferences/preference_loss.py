"""Learning from pairs without a reward model: DPO, cDPO, robust DPO, IPO, hinge.

    gap     = log(policy / reference)(chosen) - log(policy / reference)(rejected)
    sigmoid = -(1 - e) * log sigmoid(beta * gap) - e * log sigmoid(-beta * gap)
    robust  = [-(1 - e) * log sigmoid(beta * gap) + e * log sigmoid(-beta * gap)] / (1 - 2e)
    ipo     = (gap - 1 / (2 * beta))^2
    hinge   = max(0, 1 - beta * gap)

with e the label smoothing: the probability that a label is flipped. In this order: Rafailov
et al. 2023, Direct Preference Optimization, arXiv:2305.18290, equation 7, and with e > 0 the
conservative DPO of Mitchell 2023, https://ericmitchell.ai/cdpo.pdf; Chowdhury et al. 2024,
Provably Robust DPO, arXiv:2403.00409, unbiased under flipped labels; Azar et al. 2023, A
General Theoretical Paradigm to Understand Learning from Human Preferences (IPO),
arXiv:2310.12036, equation 17, where beta is called tau; Zhao et al. 2023, SLiC-HF,
arXiv:2305.10425, with the reference of Liu et al. 2023, RSO, arXiv:2309.06657.

`divide_by_length` divides every log ratio by the answer's number of tokens: the
length-normalised DPO of Lambert et al. 2024, Tulu 3, arXiv:2411.15124. With
reference log-probabilities of 0 it is SimPO without its margin (Meng et al. 2024,
arXiv:2405.14734).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_integers, assert_no_gradient, assert_token_tensors
from rlhf_ray.algorithms.preferences.pair_statistics import correct_pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceLoss:
    """Loss and statistics of every pair, in float32 or wider; reduce each with `mean_share`.

    Attributes:
        per_pair [P]: the loss, with gradient; 0 off the mask.
        chosen_rewards [P], rejected_rewards [P]: beta times the log ratio, divided by the length
            where the loss divides; detached, 0 off the mask.
        correct [P]: 1, at a tie 1/2, else 0; detached, 0 off the mask.
    """

    per_pair: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    correct: Tensor


def _sigmoid(gap: Tensor, beta: float, flipped: float) -> Tensor:
    score = beta * gap
    return -(1.0 - flipped) * F.logsigmoid(score) - flipped * F.logsigmoid(-score)


def _robust(gap: Tensor, beta: float, flipped: float) -> Tensor:
    score = beta * gap
    expected = -(1.0 - flipped) * F.logsigmoid(score) + flipped * F.logsigmoid(-score)
    return expected / (1.0 - 2.0 * flipped)


def _ipo(gap: Tensor, beta: float, _flipped: float) -> Tensor:
    return (gap - 0.5 / beta).square()


def _hinge(gap: Tensor, beta: float, _flipped: float) -> Tensor:
    return F.relu(1.0 - beta * gap)


_VARIANTS: dict[str, Callable[[Tensor, float, float], Tensor]] = {
    "sigmoid": _sigmoid,
    "robust": _robust,
    "ipo": _ipo,
    "hinge": _hinge,
}
_SMOOTHED = ("sigmoid", "robust")


def preference_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    reference_chosen_logprobs: Tensor,
    reference_rejected_logprobs: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    mask: Tensor,
    *,
    variant: str,
    beta: float,
    label_smoothing: float = 0.0,
    divide_by_length: bool = False,
) -> PreferenceLoss:
    """Loss per pair of the gap between the log ratios of its two answers: see the module.

    Conventions: "ipo" sums over the tokens as equation 17 and OpenRLHF do, and divides as TRL
    does with `divide_by_length`. "sigmoid" with label smoothing is that of OpenRLHF and
    DeepSpeed-Chat; TRL's "sigmoid" does not read it. An answer without a token has the log ratio
    0. TRL reports the rewards of undivided log ratios and counts ties as wrong.

    Args:
        chosen_logprobs [P], rejected_logprobs [P]: summed over each answer's tokens, with
            gradient; those of the reference [P] are constants.
        chosen_lengths [P] int64, rejected_lengths [P] int64: number of those tokens.
        mask [P] bool: False on padding.
        variant: "sigmoid", "robust", "ipo" or "hinge".
        beta: above 0. label_smoothing: e in [0, 1/2), 0 for "ipo" and "hinge".
    """
    assert_token_tensors(
        mask,
        chosen_logprobs=chosen_logprobs,
        rejected_logprobs=rejected_logprobs,
        reference_chosen_logprobs=reference_chosen_logprobs,
        reference_rejected_logprobs=reference_rejected_logprobs,
    )
    assert_no_gradient(
        reference_chosen_logprobs=reference_chosen_logprobs,
        reference_rejected_logprobs=reference_rejected_logprobs,
    )
    assert_integers("chosen_lengths", chosen_lengths, mask.shape)
    assert_integers("rejected_lengths", rejected_lengths, mask.shape)
    _assert_settings(variant, beta, label_smoothing)
    chosen = _log_ratio(chosen_logprobs, reference_chosen_logprobs, mask)
    rejected = _log_ratio(rejected_logprobs, reference_rejected_logprobs, mask)
    if divide_by_length:
        chosen = chosen / chosen_lengths.clamp(min=1)
        rejected = rejected / rejected_lengths.clamp(min=1)
    gap = chosen - rejected
    return PreferenceLoss(
        per_pair=torch.where(mask, _VARIANTS[variant](gap, beta, label_smoothing), 0.0),
        chosen_rewards=beta * chosen.detach(),
        rejected_rewards=beta * rejected.detach(),
        correct=correct_pairs(gap, mask),
    )


def _log_ratio(logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """[P] in float32 or wider, 0 off the mask."""
    wide = torch.promote_types(logprobs.dtype, torch.float32)
    # Masked before the loss: 0 * NaN in the backward pass would be NaN.
    return torch.where(mask, logprobs.to(wide) - reference_logprobs.to(wide), 0.0)


def _assert_settings(variant: str, beta: float, label_smoothing: float) -> None:
    assert variant in _VARIANTS, f"variant {variant!r} is not in {sorted(_VARIANTS)}"
    assert beta > 0, f"beta is {beta}"
    assert 0 <= label_smoothing < 0.5, f"label_smoothing is {label_smoothing}, not in [0, 0.5)"
    smooth = label_smoothing == 0 or variant in _SMOOTHED
    assert smooth, f"label_smoothing is {label_smoothing}, which {variant!r} does not know"
