"""From scored groups to what every rank trains on, optimiser step by optimiser step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.policy_losses.covariance import (
    clip_cov_tokens,
    kl_cov_tokens,
    token_covariance,
)
from rlhf_ray.algorithms.ragged import count_by_segment, sum_by_segment
from rlhf_ray.batching.micro_batches import split_mini_batches
from rlhf_ray.batching.rank_plan import RankPlan, consecutive_rows, plan_rows, token_positions
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.experience.advantages import Advantages, estimate_advantages
from rlhf_ray.experience.off_policy_correction import (
    CorrectedBatch,
    corrected,
    gap_metrics,
    uncorrected,
)
from rlhf_ray.experience.reward_shaping import NO_CONTROL, RewardShaping, shape_groups, weigh_tasks
from rlhf_ray.experience.rollout_batch import RolloutBatch, flatten_groups
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperienceBatch:
    """One batch of rollouts, ready to be trained on.

    Attributes:
        learner: per rank, per optimiser step.
        critic: the same samples in the same steps, planned for the critic's ranks; empty
            without a critic.
        metrics: flat metric names to numbers.
    """

    learner: tuple[tuple[Experience, ...], ...]
    critic: tuple[tuple[Experience, ...], ...]
    metrics: dict[str, float]


def build_experience(
    groups: Sequence[RolloutGroup],
    *,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
    old_is_current: bool,
    algorithm: AlgorithmConfig,
    coefficients: Coefficients,
    learner: RankPlan,
    critic: RankPlan | None,
    seed: int,
    step: int,
    control: RewardShaping = NO_CONTROL,
) -> ExperienceBatch:
    """Turn scored groups into the experience of every rank of learner and critic.

    Advantages are computed here, once, for the whole batch, and loss counts are global: the
    number of ranks and micro-batches changes neither loss nor gradient. Groups may arrive in
    any order; they are taken in the order of the prompt stream.

    Args:
        groups: scored.
        reference, values, old: per group, by the reference, the critic and the learner
            (log-probabilities at the start of this step); None where that role was not asked.
            Without the learner's, the old log-probabilities are the generator's.
        old_is_current: see `Config.old_is_current`.
        coefficients: those in force.
        critic: None without a critic. control: over-long responses, weights of tasks.
        seed, step: of the run; they decide which samples share an optimiser step.

    Raises:
        ValueError: a sample is over a role's token budget, or there are fewer samples than
            mini-batches.
    """
    _assert_inputs(groups, algorithm, coefficients, reference=reference, values=values, old=old)
    groups, shaping = shape_groups(groups, control, coefficients.reward_scales)
    batch = flatten_groups(groups, algorithm.num_greedy, reference, values, old)
    estimated = estimate_advantages(batch, algorithm=algorithm, coefficients=coefficients)
    estimated = weigh_tasks(estimated, batch, control)
    weighed = corrected(batch, algorithm) if algorithm.corrects_gap else uncorrected(batch)
    steps = _split_steps(batch, algorithm, seed=seed, step=step)
    assert len(steps) == 1 or not old_is_current, "after an optimiser step the current one is new"
    chosen = [
        _choose(weighed.batch, estimated, rows, algorithm, seed=_seed("chosen", seed, step, number))
        for number, rows in enumerate(steps)
    ]

    def planned(plan: RankPlan) -> tuple[tuple[Experience, ...], ...]:
        per_step = [
            _build_step(weighed, estimated, tokens, rows, plan, old_is_current=old_is_current)
            for rows, tokens in zip(steps, chosen, strict=True)
        ]
        return tuple(zip(*per_step, strict=True))

    return ExperienceBatch(
        learner=planned(learner),
        critic=() if critic is None else planned(critic),
        metrics=estimated.metrics | shaping | weighed.metrics | _gaps(batch, reference, old),
    )


def _assert_inputs(
    groups: Sequence[RolloutGroup],
    algorithm: AlgorithmConfig,
    coefficients: Coefficients,
    *,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
) -> None:
    assert not algorithm.rewards_steps or all(g.has_steps for g in groups if g.num_samples), (
        "the algorithm trains on steps, and a group has none"
    )
    assert algorithm.advantage != "gae" or values is not None, "GAE needs the critic's values"
    penalised = algorithm.kl_placement == "reward" and coefficients.kl > 0
    assert not penalised or reference is not None, "a KL penalty in the reward needs a reference"
    assert not algorithm.corrects_gap or old is not None, (
        "a correction of the gap needs the learner's log-probabilities"
    )


def _split_steps(
    batch: RolloutBatch, algorithm: AlgorithmConfig, *, seed: int, step: int
) -> list[list[int]]:
    """The samples of every optimiser step; every epoch has a permutation of its own."""
    trained = batch.trained.nonzero()[:, 0].tolist()
    steps = []
    for epoch in range(algorithm.num_epochs):
        epoch_seed = _seed("mini-batches of", seed, step, epoch)
        steps += split_mini_batches(len(trained), algorithm.num_mini_batches, epoch_seed)
    return [[trained[place] for place in rows] for rows in steps]


def _seed(purpose: str, seed: int, step: int, number: int) -> int:
    return random.Random(f"{purpose} {seed}, {step}, {number}").getrandbits(63)


def _choose(
    batch: RolloutBatch,
    estimated: Advantages,
    samples: Sequence[int],
    algorithm: AlgorithmConfig,
    *,
    seed: int,
) -> Tensor:
    """Tokens [N] of one optimiser step that the surrogate treats apart; none, for most of them."""
    belongs = torch.zeros(batch.lengths.shape[0], dtype=torch.bool)
    belongs[torch.tensor(samples)] = True
    mask = batch.loss_mask & torch.repeat_interleave(belongs, batch.lengths)
    if algorithm.policy_loss not in ("clip_cov", "kl_cov"):
        return torch.zeros_like(mask)
    covariance = token_covariance(batch.old_logprobs, estimated.advantages, mask)
    if algorithm.policy_loss == "kl_cov":
        return kl_cov_tokens(covariance, mask, share=algorithm.covariance_share)
    return clip_cov_tokens(
        covariance,
        mask,
        share=algorithm.covariance_share,
        low=algorithm.covariance_low,
        high=algorithm.covariance_high,
        seed=seed,
    )


def _build_step(
    weighed: CorrectedBatch,
    estimated: Advantages,
    chosen: Tensor,
    samples: Sequence[int],
    plan: RankPlan,
    *,
    old_is_current: bool,
) -> list[Experience]:
    """The experience of every rank for one optimiser step."""
    batch = weighed.batch
    lengths = batch.lengths.tolist()
    sampled = count_by_segment(batch.loss_mask, batch.lengths)[torch.tensor(samples)]
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    positive = count_by_segment(batch.loss_mask & (estimated.advantages > 0), batch.lengths)
    plans = plan_rows(batch.token_ids, batch.lengths, batch.loss_mask, samples, plan)
    experiences = []
    for micro_batches in plans:
        mine = [samples[row] for rows in micro_batches for row in rows]
        tokens = token_positions([(starts[sample], lengths[sample]) for sample in mine])
        experiences.append(
            Experience(
                token_ids=batch.token_ids[tokens],
                lengths=batch.lengths[torch.tensor(mine, dtype=torch.int64)],
                loss_mask=batch.loss_mask[tokens],
                advantages=estimated.advantages[tokens],
                old_logprobs=batch.old_logprobs[tokens],
                generator_logprobs=batch.generator_logprobs[tokens],
                kept_token_ids=batch.kept_token_ids[tokens],
                reference_logprobs=batch.reference_logprobs[tokens],
                returns=estimated.returns[tokens],
                values=batch.values[tokens],
                weights=weighed.weights[tokens],
                chosen=chosen[tokens],
                micro_batches=consecutive_rows([len(rows) for rows in micro_batches]),
                num_loss_tokens=int(sampled.sum()),
                num_sequences=int((sampled > 0).sum()),
                num_positive_tokens=int(positive[torch.tensor(samples)].sum()),
                reference_kept_logprobs=batch.reference_kept_logprobs[tokens],
                old_is_current=old_is_current,
            )
        )
    return experiences


def _gaps(
    batch: RolloutBatch, reference: Sequence[TokenValues] | None, old: Sequence[TokenValues] | None
) -> dict[str, float]:
    """Distances to the roles that were asked."""
    to_reference = {} if reference is None else _reference_metrics(batch)
    return to_reference | ({} if old is None else gap_metrics(batch))


def _reference_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Mean over responses of the summed k1, in nats, whichever estimator trains."""
    k1 = token_kl(batch.old_logprobs, batch.reference_logprobs, batch.loss_mask, estimator="k1")
    per_response = sum_by_segment(k1, batch.lengths, batch.loss_mask)
    answered = count_by_segment(batch.loss_mask, batch.lengths) > 0
    return {"kl/reference": float(per_response[answered].mean()) if bool(answered.any()) else 0.0}
