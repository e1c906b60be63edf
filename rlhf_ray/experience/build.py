"""Experience of every rank and optimiser step, built from scored groups."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
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
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.advantages import Advantages, estimate_advantages
from rlhf_ray.experience.off_policy_correction import (
    CorrectedBatch,
    correct,
    learner_generator_metrics,
)
from rlhf_ray.experience.reward_shaping import NO_SHAPING, RewardShaping, shape_rewards, weigh_tasks
from rlhf_ray.experience.rollout_batch import RolloutBatch, by_prompt, flatten_groups
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperienceBatch:
    """One batch of rollouts, ready to be trained on.

    Attributes:
        learner: per rank, per optimiser step.
        critic: the same samples in the same steps, planned for the critic's ranks; empty
            without a critic.
        metrics: flat metric names to numbers.
        advantages: of the tokens of each group, by prompt id.
    """

    learner: tuple[tuple[Experience, ...], ...]
    critic: tuple[tuple[Experience, ...], ...]
    metrics: dict[str, float]
    advantages: Mapping[str, Tensor]


def build_experience(
    groups: Sequence[RolloutGroup],
    *,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
    old_logprobs_from: OldLogprobsFrom,
    algorithm: AlgorithmConfig,
    coefficients: Coefficients,
    learner: RankPlan,
    critic: RankPlan | None,
    seed: int,
    step: int,
    shaping: RewardShaping = NO_SHAPING,
) -> ExperienceBatch:
    """Turn scored groups, in any order, into the experience of every rank of learner and critic.

    Advantages are computed here, once, for the whole batch, and loss counts are global: the
    number of ranks and micro-batches changes neither loss nor gradient.

    Args:
        reference, values, old: per group, by the reference, the critic and the learner
            (log-probabilities at the start of this step); None if the role was not asked.
            Without the learner's, the old log-probabilities are the generator's.
        old_logprobs_from: see `Config.old_logprobs_from`.
        coefficients: in force. critic: None without one. shaping: of rewards, weights of tasks.
        seed, step: of the run; they decide which samples share an optimiser step.

    Raises:
        ValueError: a sample is over a role's token budget, or there are fewer samples than
            mini-batches.
    """
    _assert_inputs(groups, algorithm, coefficients, reference=reference, values=values, old=old)
    groups, shaping_metrics = shape_rewards(groups, shaping, coefficients.reward_scales)
    batch = flatten_groups(groups, algorithm.num_greedy, reference, values, old)
    estimated = estimate_advantages(batch, algorithm=algorithm, coefficients=coefficients)
    estimated = weigh_tasks(estimated, batch, shaping)
    # After the advantages: samples of rejected tokens stay in the baselines.
    weighed = correct(batch, algorithm)
    steps = _split_steps(batch, algorithm, seed=seed, step=step)
    assert len(steps) == 1 or old_logprobs_from is not OldLogprobsFrom.LEARNER_IN_UPDATE, (
        "from the second optimiser step on, the current policy is not the old one"
    )
    seeds = [_seed("chosen", seed, step, number) for number in range(len(steps))]
    selected = _select_by_covariance(weighed.batch, estimated, steps, algorithm, seeds)

    def planned(plan: RankPlan) -> tuple[tuple[Experience, ...], ...]:
        per_step = [
            _build_step(weighed, estimated, tokens, rows, plan, old_logprobs_from)
            for rows, tokens in zip(steps, selected, strict=True)
        ]
        return tuple(zip(*per_step, strict=True))

    metrics = estimated.metrics | weighed.metrics
    return ExperienceBatch(
        learner=planned(learner),
        critic=() if critic is None else planned(critic),
        metrics=metrics | shaping_metrics | _distances(batch, reference, old),
        advantages=by_prompt(groups, estimated.advantages),
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
    assert not algorithm.rewards_steps or all(
        group.steps is not None for group in groups if group.num_samples
    ), "the algorithm trains on steps, and a group has none"
    assert algorithm.advantage != "gae" or values is not None, "GAE needs the critic's values"
    penalised = algorithm.kl_placement == "reward" and coefficients.kl > 0
    assert not penalised or reference is not None, "a KL penalty in the reward needs a reference"
    assert not algorithm.has_importance_correction or old is not None, (
        "an importance-sampling correction needs the learner's log-probabilities"
    )


def _split_steps(
    batch: RolloutBatch, algorithm: AlgorithmConfig, *, seed: int, step: int
) -> list[list[int]]:
    """The samples of every optimiser step; every epoch has its own permutation."""
    # Greedy answers are a baseline only, so they take no place in a mini-batch.
    trained = batch.trained.nonzero()[:, 0].tolist()
    steps = []
    for epoch in range(algorithm.num_epochs):
        epoch_seed = _seed("mini-batches of", seed, step, epoch)
        steps += split_mini_batches(len(trained), algorithm.num_mini_batches, epoch_seed)
    return [[trained[place] for place in rows] for rows in steps]


def _seed(purpose: str, seed: int, step: int, number: int) -> int:
    return random.Random(f"{purpose} {seed}, {step}, {number}").getrandbits(63)


def _select_by_covariance(
    batch: RolloutBatch,
    estimated: Advantages,
    steps: Sequence[Sequence[int]],
    algorithm: AlgorithmConfig,
    seeds: Sequence[int],
) -> list[Tensor]:
    """Tokens [N] of every optimiser step that a covariance-based policy loss treats apart.

    Selected over the whole step, before the split over ranks: the covariance compares every token
    with the mean over all of them, so that a rank alone would select other tokens.
    """
    return [
        _selected_of_step(batch, estimated, samples, algorithm, seed)
        for samples, seed in zip(steps, seeds, strict=True)
    ]


def _selected_of_step(
    batch: RolloutBatch,
    estimated: Advantages,
    samples: Sequence[int],
    algorithm: AlgorithmConfig,
    seed: int,
) -> Tensor:
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
    selected: Tensor,
    samples: Sequence[int],
    plan: RankPlan,
    old_logprobs_from: OldLogprobsFrom,
) -> list[Experience]:
    """The experience of every rank for one optimiser step."""
    batch = weighed.batch
    lengths = batch.lengths.tolist()
    # Counted over all ranks and micro-batches of the step, not per rank: with global counts the
    # plain sum of all shares is the mean, however unevenly tokens are spread.
    sampled = count_by_segment(batch.loss_mask, batch.lengths)[torch.tensor(samples)]
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    positive = count_by_segment(batch.loss_mask & (estimated.advantages > 0), batch.lengths)
    plans = plan_rows(batch.token_ids, batch.lengths, batch.loss_mask, samples, plan)
    experiences = []
    for micro_batches in plans:
        # Samples are sorted by micro-batch, so that every micro-batch is a run of neighbours.
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
                support_token_ids=_rows(batch.support_token_ids, tokens),
                reference_logprobs=batch.reference_logprobs[tokens],
                returns=estimated.returns[tokens],
                values=batch.values[tokens],
                importance_weights=weighed.importance_weights[tokens],
                covariance_selected=selected[tokens],
                micro_batches=consecutive_rows([len(rows) for rows in micro_batches]),
                num_loss_tokens=int(sampled.sum()),
                num_sequences=int((sampled > 0).sum()),
                num_positive_tokens=int(positive[torch.tensor(samples)].sum()),
                reference_support_logprobs=_rows(batch.reference_support_logprobs, tokens),
                old_logprobs_from=old_logprobs_from,
            )
        )
    return experiences


def _rows(values: Tensor | None, tokens: Tensor) -> Tensor | None:
    return None if values is None else values[tokens]


def _distances(
    batch: RolloutBatch, reference: Sequence[TokenValues] | None, old: Sequence[TokenValues] | None
) -> dict[str, float]:
    """Metrics of how far the policy is from the roles that were asked."""
    to_reference = {} if reference is None else _reference_metrics(batch)
    return to_reference | ({} if old is None else learner_generator_metrics(batch))


def _reference_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Mean over responses of the summed k1, in nats, whichever estimator trains."""
    k1 = token_kl(batch.old_logprobs, batch.reference_logprobs, batch.loss_mask, estimator="k1")
    per_response = sum_by_segment(k1, batch.lengths, batch.loss_mask)
    answered = count_by_segment(batch.loss_mask, batch.lengths) > 0
    return {"kl/reference": float(per_response[answered].mean()) if bool(answered.any()) else 0.0}
