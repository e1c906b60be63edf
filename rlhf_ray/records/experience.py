"""Records of one optimiser step: experience of a rank, and the coefficients of controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_ray.algorithms.rewards.task_rewards import RewardScale
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.records.checks import check_lengths, check_micro_batches, check_shape, check_support
from rlhf_ray.records.travel import TravellingRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """Coefficients that controllers have set for one step.

    Attributes:
        kl: weight of the KL penalty.
        entropy: weight of the entropy bonus.
        reward_baseline: moving mean of the rewards of earlier batches.
        reward_scales: by task, to normalise its rewards; empty if rewards stay as scored.
    """

    kl: float = 0.0
    entropy: float = 0.0
    reward_baseline: float = 0.0
    reward_scales: Mapping[str, RewardScale] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience(TravellingRecord):
    """Samples and targets of one optimiser step on one rank.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        advantages, old_logprobs, generator_logprobs, reference_logprobs, returns,
            values [N] float32: 0.0 off the mask, and if the algorithm does not use them.
        importance_weights [N] float32: factor of every token's policy loss, 1 without an
            importance-sampling correction; 0.0 off the mask.
        covariance_selected [N] bool: tokens that a covariance-based policy loss treats apart.
        support_token_ids [N, K] int32: as in `RolloutGroup`; None for the whole vocabulary.
        micro_batches: rows of `lengths` that go through one forward pass; the number of
            micro-batches is the same on every rank, so some may be empty.
        num_loss_tokens: GLOBAL count of masked tokens over all ranks of this step.
        num_sequences: GLOBAL count of samples with at least one masked token.
        num_positive_tokens: GLOBAL count of masked tokens with an advantage above 0.
        reference_support_logprobs [N, K] float32: log-probabilities under the reference over the
            support, -inf on filled up entries; None if the penalty needs the sampled tokens alone.
        old_logprobs_from: where `old_logprobs` come from. For LEARNER_IN_UPDATE the policy has
            not changed since they were due, so the loss takes the current log-probabilities,
            detached, in their place.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    generator_logprobs: Tensor
    support_token_ids: Tensor | None
    reference_logprobs: Tensor
    returns: Tensor
    values: Tensor
    importance_weights: Tensor
    covariance_selected: Tensor
    micro_batches: tuple[tuple[int, ...], ...]
    num_loss_tokens: int
    num_sequences: int
    num_positive_tokens: int
    reference_support_logprobs: Tensor | None
    old_logprobs_from: OldLogprobsFrom

    def __post_init__(self) -> None:
        num_tokens = self.token_ids.shape[0]
        for name in (
            "loss_mask",
            "advantages",
            "old_logprobs",
            "generator_logprobs",
            "reference_logprobs",
            "returns",
            "values",
            "importance_weights",
            "covariance_selected",
        ):
            check_shape(name, getattr(self, name), (num_tokens,))
        check_support(self.support_token_ids, num_tokens)
        if self.reference_support_logprobs is not None:
            rows = self.reference_support_logprobs
            check_shape("reference_support_logprobs", rows, (num_tokens, rows.shape[-1]))
        check_lengths(self.lengths, num_tokens)
        check_micro_batches(self.micro_batches, self.lengths.shape[0])
