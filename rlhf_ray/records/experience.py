"""Records of one optimiser step: experience of a rank, and the coefficients of controllers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_ray.algorithms.rewards.task_rewards import RewardScale
from rlhf_ray.records.checks import check_kept, check_lengths, check_micro_batches, check_shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Coefficients:
    """What controllers have set for one step.

    Attributes:
        kl: weight of the KL penalty.
        entropy: weight of the entropy bonus.
        reward_baseline: moving mean of the rewards of earlier batches.
        reward_scales: by task, to normalise its rewards; empty where they stay as scored.
    """

    kl: float = 0.0
    entropy: float = 0.0
    reward_baseline: float = 0.0
    reward_scales: Mapping[str, RewardScale] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experience:
    """What one optimiser step consumes on one rank.

    Attributes:
        token_ids [N] int64, lengths [S] int64, loss_mask [N] bool: ragged samples.
        advantages, old_logprobs, generator_logprobs, reference_logprobs, returns,
            values [N] float32: 0.0 off the mask, and where the algorithm has no use for them.
        weights [N] float32: factor of every token's policy loss, 1 without a correction of the
            gap between engine and learner; 0.0 off the mask.
        chosen [N] bool: tokens that a covariance-based surrogate treats apart.
        kept_token_ids [N, K] int32: as in `RolloutGroup`.
        micro_batches: rows of `lengths` that go through one forward pass; the number of
            micro-batches is the same on every rank, so some may be empty.
        num_loss_tokens: GLOBAL count of masked tokens over all ranks of this step.
        num_sequences: GLOBAL count of samples with at least one masked token.
        num_positive_tokens: GLOBAL count of masked tokens with an advantage above 0.
        reference_kept_logprobs [N, K] float32: of all kept tokens, under the reference, -inf
            where there is none; [N, 0] where the penalty needs the sampled tokens alone.
        old_is_current: the policy has not changed since `old_logprobs` were due, so the loss
            takes the current log-probabilities, detached, in their place.
    """

    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    advantages: Tensor
    old_logprobs: Tensor
    generator_logprobs: Tensor
    kept_token_ids: Tensor
    reference_logprobs: Tensor
    returns: Tensor
    values: Tensor
    weights: Tensor
    chosen: Tensor
    micro_batches: tuple[tuple[int, ...], ...]
    num_loss_tokens: int
    num_sequences: int
    num_positive_tokens: int
    reference_kept_logprobs: Tensor
    old_is_current: bool

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
            "weights",
            "chosen",
        ):
            check_shape(name, getattr(self, name), (num_tokens,))
        check_kept(self.kept_token_ids, num_tokens)
        width = self.reference_kept_logprobs.shape[-1]
        check_shape("reference_kept_logprobs", self.reference_kept_logprobs, (num_tokens, width))
        check_lengths(self.lengths, num_tokens)
        check_micro_batches(self.micro_batches, self.lengths.shape[0])
