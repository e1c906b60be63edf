"""Invariance of the experience, and its cut into optimiser steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.config.keys.choices import conf_dir
from rlhf_ray.experience.build import ExperienceBatch
from rlhf_ray.objectives.policy import Predicted, policy_objective, value_objective
from rlhf_ray.records import Coefficients, Experience, GroupSteps, RolloutGroup, TokenValues
from tests.unit.training.builders import (
    ONE_RANK,
    VOCABULARY,
    F,
    T,
    build,
    by_tokens,
    make_group,
    only,
    random_groups,
    token_values,
    two_groups,
)


def published(path: Path) -> AlgorithmConfig:
    """A method as it is published but in one step, with shares that choose tokens of few."""
    settings = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(settings, dict)
    large = {"covariance_share": 0.1, "covariance_low": 0.0}
    large = large if "covariance_share" in settings else {}
    return AlgorithmConfig(**{**settings, **large, "num_mini_batches": 1})


ALGORITHMS = {
    **{path.stem: published(path) for path in sorted((conf_dir() / "algorithm").glob("*.yaml"))},
    "ppo_whitened_per_task": AlgorithmConfig(
        advantage="gae",
        kl_placement="reward",
        kl_coefficient=0.05,
        whiten_advantages=True,
        whiten_per_task=True,
        value_huber_delta=0.5,
    ),
    "everything": AlgorithmConfig(
        kl_gradient="unbiased",
        dual_clip=1.5,
        nll_coefficient=0.3,
        correction_weight="sequence",
        correction_filter="geometric",
        correction_low=0.9,
        correction_high=1.1,
        correction_reject=True,
        reduction="sequence_mean",
    ),
}
COEFFICIENTS = Coefficients(kl=0.05, entropy=0.1, reward_baseline=0.3)


def losses_and_gradients(
    batch: ExperienceBatch, algorithm: AlgorithmConfig, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss [2] and gradient [2, vocabulary] of a tiny policy and a tiny critic at one step.

    As real ranks do it: every micro-batch by itself, each share summed.
    """
    weights = torch.linspace(-2.0, 1.0, 2 * VOCABULARY, dtype=torch.float64).reshape(2, -1)
    weights.requires_grad_()
    losses = torch.zeros(2, dtype=torch.float64)
    for role, ranks in ((0, batch.learner), (1, batch.critic)):
        for rank in ranks:
            experience = rank[step]
            lengths = experience.lengths.tolist()
            for rows in experience.micro_batches:
                starts = [sum(lengths[:row]) for row in rows]
                tokens = [
                    s + i for s, r in zip(starts, rows, strict=True) for i in range(lengths[r])
                ]
                index = torch.tensor(tokens, dtype=torch.int64)
                share = micro_batch_loss(experience, index, weights[role], algorithm, role)
                share.backward()
                losses[role] += share.detach()
    assert weights.grad is not None
    return losses, weights.grad


def micro_batch_loss(
    experience: Experience,
    index: torch.Tensor,
    weights: torch.Tensor,
    algorithm: AlgorithmConfig,
    role: int,
) -> torch.Tensor:
    """Loss of a policy or critic that treats a token the same everywhere."""
    predicted = index[experience.loss_mask[index]]
    tokens = experience.token_ids[predicted]
    if role == 1:
        return value_objective(weights[tokens], experience, predicted, algorithm=algorithm).loss
    logprobs = weights.log_softmax(0)
    entropy = -(logprobs.exp() * logprobs).sum().expand(predicted.shape[0])
    return policy_objective(
        Predicted(logprobs=logprobs[tokens], entropy=entropy),
        experience,
        predicted,
        algorithm=algorithm,
        coefficients=COEFFICIENTS,
        constant_length=9,
        compare_with_generator=False,
    ).loss


def groups_for(algorithm: AlgorithmConfig, *, seed: int) -> list[RolloutGroup]:
    """Rewards of at least 0, and those of steps where the algorithm asks for them."""
    groups = random_groups(seed, num_groups=5, samples_per_group=3)
    groups = [dataclasses.replace(g, rewards=g.rewards.abs()) for g in groups]
    if not algorithm.rewards_steps:
        return groups
    generator = torch.Generator().manual_seed(seed)
    with_steps = []
    for group in groups:
        drawn = torch.rand(group.loss_mask.shape, generator=generator, dtype=torch.float64)
        ends = group.loss_mask & (drawn < 0.5)
        rewards = torch.where(ends, drawn, 0.0)
        steps = GroupSteps(text_ends=ends.int(), rewards=rewards, ends=ends)
        with_steps.append(dataclasses.replace(group, steps=steps))
    return with_steps


def some_roles(groups: list[RolloutGroup]) -> dict[str, list[TokenValues]]:
    return {
        "values": token_values(groups, seed=4),
        "reference": token_values(groups, seed=5),
        "old": token_values(groups, seed=6),
    }


@pytest.mark.unit_slow
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
@pytest.mark.parametrize(("num_ranks", "budget"), [(1, 12), (2, 30), (3, 12), (5, 10_000)])
@pytest.mark.parametrize("layout", ["padded", "packed", "auto"])
def test_ranks_and_micro_batches_change_nothing(name, num_ranks, budget, layout):
    algorithm = ALGORITHMS[name]
    groups = groups_for(algorithm, seed=7)
    roles = some_roles(groups)
    whole = build(groups, algorithm, **roles, critic=ONE_RANK, coefficients=COEFFICIENTS)
    plan = RankPlan(num_ranks=num_ranks, max_tokens_per_micro_batch=budget, layout=layout)
    split = build(groups, algorithm, **roles, learner=plan, critic=plan, coefficients=COEFFICIENTS)
    assert len(split.learner) == len(split.critic) == num_ranks
    assert split.metrics == whole.metrics
    expected = losses_and_gradients(whole, algorithm, 0)
    result = losses_and_gradients(split, algorithm, 0)
    assert expected[0].abs().min() > 1e-3
    for value, target in zip(result, expected, strict=True):
        torch.testing.assert_close(value, target, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("layout", "budget"), [("padded", 24), ("auto", 24), ("packed", 12)])
def test_groups_share_a_micro_batch_where_prompts_can_be_shared(layout, budget):
    """Two groups of a prompt of 4 tokens and answers of 2, by turns longer: 24 tokens if padded."""
    groups = []
    for index in range(2):
        masks = [[F] * 4 + [T] * (2 - (index + sample) % 2) for sample in range(4)]
        tokens = [[index] * 4 + [5 + sample] * (len(mask) - 4) for sample, mask in enumerate(masks)]
        flat = [token for row in tokens for token in row]
        groups.append(make_group(index, masks, [0.0, 1.0, 2.0, 3.0], token_ids=flat))
    plan = RankPlan(num_ranks=1, max_tokens_per_micro_batch=budget, layout=layout)
    experience = only(build(groups, learner=plan))
    prompts = [int(sample[0]) for sample in experience.token_ids.split(experience.lengths.tolist())]
    together = [sorted(prompts[row] for row in rows) for rows in experience.micro_batches]
    mixed = [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert together == (mixed if layout == "padded" else [[0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_order_of_groups_changes_nothing(name):
    algorithm = ALGORITHMS[name]
    groups = groups_for(algorithm, seed=8)
    roles = some_roles(groups)
    expected = build(groups, algorithm, **roles, critic=ONE_RANK, coefficients=COEFFICIENTS)

    # Arriving in another order: bit for bit the same.
    backwards = {name: list(reversed(items)) for name, items in roles.items()}
    arrived = build(
        groups[::-1], algorithm, **backwards, critic=ONE_RANK, coefficients=COEFFICIENTS
    )
    for field in dataclasses.fields(Experience):
        mine, theirs = (getattr(only(b), field.name) for b in (arrived, expected))
        same = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        assert same, field.name

    # Another place in the stream: the same to rounding.
    moved = [
        dataclasses.replace(
            group, prompt=dataclasses.replace(group.prompt, stream_index=(3 * index) % 5)
        )
        for index, group in enumerate(groups)
    ]
    permuted = build(moved, algorithm, **roles, critic=ONE_RANK, coefficients=COEFFICIENTS)
    for value, target in zip(
        losses_and_gradients(permuted, algorithm, 0),
        losses_and_gradients(expected, algorithm, 0),
        strict=True,
    ):
        torch.testing.assert_close(value, target, rtol=1e-6, atol=1e-9)


class TestOptimizerSteps:
    algorithm = AlgorithmConfig(num_epochs=2, num_mini_batches=3)

    def steps(self, **overrides) -> ExperienceBatch:
        groups = random_groups(9, num_groups=5, samples_per_group=4)
        plan = RankPlan(num_ranks=2, max_tokens_per_micro_batch=26)
        return build(
            groups,
            self.algorithm,
            **{"old": token_values(groups, seed=6), "learner": plan, "critic": plan, **overrides},
        )

    def test_every_epoch_has_every_sample_once_in_an_order_of_its_own(self):
        batch = self.steps()
        assert [len(rank) for rank in batch.learner] == [6, 6]
        per_step = [
            sorted(
                tuple(ids.tolist())
                for rank in batch.learner
                for ids in rank[step].token_ids.split(rank[step].lengths.tolist())
            )
            for step in range(6)
        ]
        everything = sorted(
            tuple(ids.tolist())
            for group in random_groups(9, num_groups=5, samples_per_group=4)
            for ids in group.token_ids.split(group.lengths.tolist())
        )
        assert sorted(itertools.chain(*per_step[:3])) == everything
        assert sorted(itertools.chain(*per_step[3:])) == everything
        assert per_step[:3] != per_step[3:]
        assert sorted(len(samples) for samples in per_step[:3]) == [6, 7, 7]

    def test_counts_are_global_per_step(self):
        for step in range(6):
            ranks = [rank[step] for rank in self.steps().learner]
            tokens = sum(int(e.loss_mask.sum()) for e in ranks)
            sequences = sum(
                int(mask.any()) for e in ranks for mask in e.loss_mask.split(e.lengths.tolist())
            )
            assert {e.num_loss_tokens for e in ranks} == {tokens}
            assert {e.num_sequences for e in ranks} == {sequences}
            assert len({len(e.micro_batches) for e in ranks}) == 1
            sources = {e.old_logprobs_from for e in ranks}
            assert sources == {OldLogprobsFrom.LEARNER_BEFORE_UPDATE}

    def test_critic_trains_on_the_same_samples_in_the_same_steps(self):
        batch = self.steps(critic=RankPlan(num_ranks=1, max_tokens_per_micro_batch=500))
        (critic,) = batch.critic
        for step in range(6):
            learner: dict[tuple[int, ...], list[float]] = {}
            for rank in batch.learner:
                learner |= by_tokens(rank[step], "advantages")
            assert learner == by_tokens(critic[step], "advantages")

    def test_depends_on_seed_and_step(self):
        def ids(batch: ExperienceBatch) -> list[list[int]]:
            return [experience.token_ids.tolist() for experience in batch.learner[0]]

        assert ids(self.steps()) == ids(self.steps())
        assert ids(self.steps()) != ids(self.steps(seed=1))
        assert ids(self.steps()) != ids(self.steps(step=1))


class TestRefusals:
    def test_several_steps_need_old_logprobs(self):
        with pytest.raises(AssertionError, match="from the second optimiser step on"):
            build(two_groups(), AlgorithmConfig(num_epochs=2))

    def test_gae_needs_values(self):
        with pytest.raises(AssertionError, match="GAE needs"):
            build(two_groups(), AlgorithmConfig(advantage="gae"))

    def test_kl_in_reward_needs_a_reference(self):
        with pytest.raises(AssertionError, match="needs a reference"):
            build(two_groups(), AlgorithmConfig(kl_placement="reward"), kl_coefficient=0.1)

    def test_values_must_cover_every_group(self):
        groups = two_groups()
        with pytest.raises(AssertionError, match="reference computed nothing for prompt prompt-1"):
            build(groups, reference=token_values(groups[:1], seed=0))
        wrong = [TokenValues(prompt_id=g.prompt.prompt_id, values=torch.zeros(2)) for g in groups]
        with pytest.raises(AssertionError, match=r"learner gave \[2\] for the 5 tokens"):
            build(groups, old=wrong)

    def test_rewards_must_be_there_and_finite(self):
        with pytest.raises(AssertionError, match="prompt prompt-0 is not scored"):
            build([make_group(0, [[T]], [])])
        with pytest.raises(AssertionError, match="not finite"):
            build([make_group(0, [[T]], [math.nan])])
        with pytest.raises(AssertionError, match="no group has a sample"):
            build([make_group(0, [], [])])

    def test_a_sample_over_the_budget(self):
        plan = RankPlan(num_ranks=1, max_tokens_per_micro_batch=2)
        with pytest.raises(ValueError, match="max_tokens_per_micro_batch is 2"):
            build(two_groups(), learner=plan)
