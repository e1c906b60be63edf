"""The objective of ranked answers: one micro-batch's share of the preference loss."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.preferences.preference_loss import preference_loss
from rlhf_ray.algorithms.preferences.ranked_pairs import RankedPairs, pair_share, ranked_pairs
from rlhf_ray.algorithms.reduce import mean_share
from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.preference_batches import AnswerSums, sum_over_answers
from rlhf_ray.records.preferences import PreferenceSamples


def pair_objective(
    logprobs: Tensor,
    samples: PreferenceSamples,
    batch: MicroBatch,
    *,
    preference: PreferenceConfig,
    phase: str,
) -> Objective:
    """The share of the mean loss over all rankings of the step, each of them counting once.

        loss = preference loss of its pairs + sft_coefficient x NLL of its best answer per token

    The second term: Pang et al. 2024, Iterative Reasoning Preference Optimization,
    arXiv:2404.19733, equation 1, over the answer's tokens only.

    Args:
        logprobs [M] with gradient: of the `batch.num_targets` predicted tokens.
        phase: first part of the metrics' names, "train" or "eval".
    """
    # Summed in float64: at the first step the log ratios are differences of equal sums.
    answers = sum_over_answers(logprobs.double(), samples, batch)
    pairs = _pairs(answers, samples)
    mask = torch.ones_like(pairs.chosen, dtype=torch.bool)
    reference = samples.reference_logprobs[answers.samples]
    loss = preference_loss(
        answers.sums[pairs.chosen],
        answers.sums[pairs.rejected],
        reference[pairs.chosen],
        reference[pairs.rejected],
        answers.counts[pairs.chosen],
        answers.counts[pairs.rejected],
        mask,
        variant=preference.loss,
        beta=preference.beta,
        label_smoothing=preference.label_smoothing,
        divide_by_length=preference.divide_by_length,
    )

    def share(values: Tensor) -> Tensor:
        return pair_share(values, pairs.weights, mask, samples.num_prompts)

    total = share(loss.per_pair)
    sums = {
        f"{phase}/accuracy": share(loss.correct),
        f"{phase}/reward_margin": share(loss.chosen_rewards - loss.rejected_rewards),
        f"{phase}/chosen_reward": share(loss.chosen_rewards),
        f"{phase}/rejected_reward": share(loss.rejected_rewards),
    }
    if preference.sft_coefficient > 0:
        is_best = samples.ranks[answers.samples] == 0
        likelihood = mean_share(-answers.sums / answers.counts, is_best, samples.num_prompts)
        total = total + preference.sft_coefficient * likelihood
        sums[f"{phase}/sft_loss"] = likelihood.detach()
    return Objective(loss=total, sums={f"{phase}/loss": total.detach(), **sums}, maxima={})


def _pairs(answers: AnswerSums, samples: PreferenceSamples) -> RankedPairs:
    """Pairs of all rankings in the micro-batch; the answers of a ranking are side by side."""
    prompts = samples.prompts[answers.samples]
    _, sizes = torch.unique_consecutive(prompts, return_counts=True)
    mask = torch.ones_like(prompts, dtype=torch.bool)
    return ranked_pairs(samples.ranks[answers.samples], sizes, mask)
