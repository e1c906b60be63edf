"""From scored groups to what every rank trains on, optimiser step by optimiser step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.algorithms.kl import token_kl
from rlhf_ray.algorithms.ragged import count_by_segment, sum_by_segment
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.records import Experience, RolloutGroup, TokenValues
from rlhf_ray.training.batching import plan_micro_batches, split_mini_batches
from rlhf_ray.training.layout import find_targets
from rlhf_ray.training.layout_cost import SampleShape
from rlhf_ray.training.packing import sample_shapes
from rlhf_ray.training.rollout_batch import (
    Advantages,
    RolloutBatch,
    estimate_advantages,
    flatten_groups,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankPlan:
    """Over how many ranks a role spreads its work, and how much one forward pass may hold.

    Attributes:
        layout: what a forward pass holds; see `plan_micro_batches`.
    """

    num_ranks: int
    max_tokens_per_micro_batch: int
    layout: str = "padded"


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
    kl_coefficient: float,
    learner: RankPlan,
    critic: RankPlan | None,
    seed: int,
    step: int,
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
        old_is_current: the policy that is trained is the one that sampled, and there is one
            optimiser step: the loss takes its own log-probabilities, detached, as the old ones.
        kl_coefficient: the one in force, from the KL controller.
        critic: None without a critic.
        seed, step: of the run; they decide which samples share an optimiser step.

    Raises:
        ValueError: a sample is over a role's token budget, or there are fewer samples than
            mini-batches.
    """
    _assert_inputs(algorithm, kl_coefficient, reference=reference, values=values, old=old)
    batch = flatten_groups(groups, reference=reference, values=values, old=old)
    estimated = estimate_advantages(batch, algorithm=algorithm, kl_coefficient=kl_coefficient)
    metrics = dict(estimated.metrics)
    if reference is not None:
        metrics |= _reference_metrics(batch)
    if old is not None:
        metrics |= _gap_metrics(batch)

    steps = _split_steps(batch.lengths.shape[0], algorithm, seed=seed, step=step)

    def planned(plan: RankPlan) -> tuple[tuple[Experience, ...], ...]:
        per_step = [
            _build_step(batch, estimated, rows, plan, old_is_current=old_is_current)
            for rows in steps
        ]
        return tuple(zip(*per_step, strict=True))

    return ExperienceBatch(
        learner=planned(learner),
        critic=() if critic is None else planned(critic),
        metrics=metrics,
    )


def _assert_inputs(
    algorithm: AlgorithmConfig,
    kl_coefficient: float,
    *,
    reference: Sequence[TokenValues] | None,
    values: Sequence[TokenValues] | None,
    old: Sequence[TokenValues] | None,
) -> None:
    num_steps = algorithm.num_epochs * algorithm.num_mini_batches
    assert num_steps == 1 or old is not None, (
        f"{num_steps} optimiser steps per batch need the learner's log-probabilities from before "
        f"the first one"
    )
    assert algorithm.advantage != "gae" or values is not None, "GAE needs the critic's values"
    penalised = algorithm.kl_placement == "reward" and kl_coefficient > 0
    assert not penalised or reference is not None, "a KL penalty in the reward needs a reference"


def _split_steps(
    num_samples: int, algorithm: AlgorithmConfig, *, seed: int, step: int
) -> list[list[int]]:
    """The samples of every optimiser step; every epoch has a permutation of its own."""
    steps = []
    for epoch in range(algorithm.num_epochs):
        epoch_seed = random.Random(f"mini-batches of {seed}, {step}, {epoch}").getrandbits(63)
        steps += split_mini_batches(num_samples, algorithm.num_mini_batches, epoch_seed)
    return steps


def _build_step(
    batch: RolloutBatch,
    estimated: Advantages,
    samples: Sequence[int],
    plan: RankPlan,
    *,
    old_is_current: bool,
) -> list[Experience]:
    """The experience of every rank for one optimiser step."""
    lengths = batch.lengths.tolist()
    sampled = count_by_segment(batch.loss_mask, batch.lengths)[torch.tensor(samples)]
    starts = (batch.lengths.cumsum(0) - batch.lengths).tolist()
    shapes: list[SampleShape] = []
    if plan.layout != "padded":
        shapes = sample_shapes(
            batch.token_ids, find_targets(batch.lengths, batch.loss_mask, samples)
        )
    plans = plan_micro_batches(
        [lengths[sample] for sample in samples],
        plan.num_ranks,
        plan.max_tokens_per_micro_batch,
        layout=plan.layout,
        shapes=shapes,
    )
    experiences = []
    for micro_batches in plans:
        mine = [samples[row] for rows in micro_batches for row in rows]
        tokens = _token_positions([(starts[sample], lengths[sample]) for sample in mine])
        experiences.append(
            Experience(
                token_ids=batch.token_ids[tokens],
                lengths=batch.lengths[torch.tensor(mine, dtype=torch.int64)],
                loss_mask=batch.loss_mask[tokens],
                advantages=estimated.advantages[tokens],
                old_logprobs=batch.old_logprobs[tokens],
                generator_logprobs=batch.generator_logprobs[tokens],
                reference_logprobs=batch.reference_logprobs[tokens],
                returns=estimated.returns[tokens],
                values=batch.values[tokens],
                micro_batches=_consecutive_rows([len(rows) for rows in micro_batches]),
                num_loss_tokens=int(sampled.sum()),
                num_sequences=int((sampled > 0).sum()),
                old_is_current=old_is_current,
            )
        )
    return experiences


def _token_positions(spans: Sequence[tuple[int, int]]) -> Tensor:
    """Positions [M] int64 of all tokens of (start, length) spans, in their order."""
    pieces = [torch.arange(start, start + length) for start, length in spans]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def _consecutive_rows(counts: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Rows 0, 1, 2, ... cut into pieces of these sizes."""
    rows = iter(range(sum(counts)))
    return tuple(tuple(next(rows) for _ in range(count)) for count in counts)


def _reference_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Mean over responses of the summed k1, in nats, whichever estimator trains."""
    k1 = token_kl(batch.old_logprobs, batch.reference_logprobs, batch.loss_mask, estimator="k1")
    per_response = sum_by_segment(k1, batch.lengths, batch.loss_mask)
    answered = count_by_segment(batch.loss_mask, batch.lengths) > 0
    return {"kl/reference": float(per_response[answered].mean()) if bool(answered.any()) else 0.0}


def _gap_metrics(batch: RolloutBatch) -> dict[str, float]:
    """How far engine and learner are apart on the sampled tokens."""
    gap = (batch.old_logprobs - batch.generator_logprobs)[batch.loss_mask].abs().double()
    return {
        "rollout/logprob_gap_mean": float(gap.mean()) if gap.numel() else 0.0,
        "rollout/logprob_gap_max": float(gap.max()) if gap.numel() else 0.0,
    }
