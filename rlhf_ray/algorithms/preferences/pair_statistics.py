"""Accuracy and calibration of a model of preferences on pairs of answers."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_floating, assert_token_tensors


def correct_pairs(difference: Tensor, mask: Tensor) -> Tensor:
    """1 where the chosen answer has the higher reward, 1/2 at a tie, 0 elsewhere.

    Conventions: a tie counts one half, what a guess would get. TRL and OpenRLHF count it as
    wrong, so that a reward model that has learned nothing has an accuracy of 0 there.

    Args:
        difference [P]: reward of the chosen less that of the rejected answer; mask [P] bool.

    Returns:
        [P] without gradient, dtype of `difference`; 0 off the mask.
    """
    assert_token_tensors(mask, difference=difference)
    kept = difference.detach()
    # By comparison and not by the sign, which takes a NaN for a tie.
    correct = torch.where(kept > 0, 1.0, torch.where(kept == 0, 0.5, 0.0)).to(difference.dtype)
    return torch.where(mask, correct, 0.0)


def calibration_bins(difference: Tensor, mask: Tensor, *, num_bins: int) -> Tensor:
    """Pairs by how sure the model is of the winner it predicts; add them up over ranks.

        confidence = sigmoid(|difference|), of the answer with the higher reward
        outcome    = `correct_pairs`: was that one chosen?

    Bins of equal width over [1/2, 1]: the lower edge belongs to a bin, and 1 to the last one.

    Conventions: sigmoid(difference) itself cannot be binned against outcomes, because in the
    order (chosen, rejected) every outcome is 1. Binning both orders of every pair over [0, 1]
    in 2 x `num_bins` bins gives the same error as this. A NaN makes the error NaN.

    Args:
        difference [P]: reward of the chosen less that of the rejected answer, without margin;
            mask [P] bool.

    Returns:
        [num_bins, 3] float64: number of pairs, summed confidence, summed outcome.
    """
    assert_token_tensors(mask, difference=difference)
    assert num_bins > 0, f"num_bins is {num_bins}"
    kept = difference.detach()[mask].double()
    confidence = torch.sigmoid(kept.abs())
    outcome = correct_pairs(kept, torch.ones_like(kept, dtype=torch.bool))
    places = ((2.0 * confidence - 1.0) * num_bins).long().clamp(0, num_bins - 1)
    rows = torch.stack((torch.ones_like(kept), confidence, outcome), dim=1)
    return rows.new_zeros(num_bins, 3).index_add(0, places, rows)


def expected_calibration_error(bins: Tensor) -> float:
    """Mean over the pairs of |confidence - accuracy| of their bin; 0 without a pair.

        sum over bins of n_bin / n * |mean confidence - mean outcome|

    Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv:1706.04599, equation 3.

    Args:
        bins [B, 3] of `calibration_bins`, added up over all ranks and micro-batches.

    Returns:
        between 0 and 1.
    """
    assert_floating("bins", bins, (bins.shape[0], 3))
    count, confidence, outcome = bins.double().unbind(dim=1)
    # n_bin cancels: the gap of the sums is n_bin times that of the means.
    return float((confidence - outcome).abs().sum() / count.sum().clamp(min=1.0))
