"""From scored groups to experience: advantages, rewards and metrics by hand and by loops."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from tests.unit.algorithms import ground_truth
from tests.unit.training.builders import (
    F,
    T,
    as_values,
    build,
    by_tokens,
    make_group,
    only,
    random_groups,
    token_values,
    two_groups,
)


class TestGroupAdvantages:
    def test_by_hand(self):
        batch = build(two_groups(), AlgorithmConfig(normalize_by_std=False))
        assert batch.critic == ()
        experience = only(batch)
        # The micro-batch is sorted by length: samples of 3 tokens first.
        assert by_tokens(experience, "advantages") == {
            (1, 2, 3): [0.0, 0.5, 0.5],
            (5, 6, 7): [0.0, 0.0, 0.0],
            (5, 6, 8): [0.0, 0.0, 0.0],
            (1, 4): [0.0, -0.5],
        }
        assert by_tokens(experience, "old_logprobs") == {
            (1, 2, 3): [0.0, -1.0, -2.0],
            (5, 6, 7): [0.0, 0.0, -1.0],
            (5, 6, 8): [0.0, 0.0, -1.0],
            (1, 4): [0.0, -0.5],
        }
        assert experience.num_loss_tokens == 5
        assert experience.num_sequences == 4
        assert experience.old_logprobs_from is OldLogprobsFrom.LEARNER_IN_UPDATE
        assert experience.micro_batches == ((0, 1, 2, 3),)
        for unused in ("reference_logprobs", "returns", "values"):
            assert not getattr(experience, unused).any()
        assert batch.metrics == pytest.approx(
            {
                "advantages/mean": 0.1,
                # 0.5, 0.5, -0.5, 0, 0 about 0.1, divided by 4.
                "advantages/std": math.sqrt((2 * 0.16 + 0.36 + 2 * 0.01) / 4),
                "advantages/zero_group_fraction": 0.5,
            }
        )

    def test_reward_clip_comes_before_the_baseline(self):
        groups = [make_group(0, [[F, T], [T]], [9.0, -1.0], token_ids=[1, 2, 3])]
        algorithm = AlgorithmConfig(normalize_by_std=False, reward_clip=2.0)
        experience = only(build(groups, algorithm))
        assert by_tokens(experience, "advantages") == {(1, 2): [0.0, 1.5], (3,): [-1.5]}

    def test_kl_in_the_reward(self):
        groups = two_groups()[:1]
        # k1 per token: 0.5 and 1.5 on the first sample, -1 on the second.
        reference = [as_values(groups[0], torch.tensor([0.0, -1.5, -3.5, 0.0, 0.5]))]
        algorithm = AlgorithmConfig(
            normalize_by_std=False, kl_placement="reward", kl_estimator="k1"
        )
        batch = build(groups, algorithm, reference=reference, kl_coefficient=0.25)
        # Rewards 1 - 0.5 and 0 + 0.25, mean 0.375.
        assert by_tokens(only(batch), "advantages") == {
            (1, 2, 3): [0.0, 0.125, 0.125],
            (1, 4): [0.0, -0.125],
        }
        assert batch.metrics["kl/reference"] == pytest.approx((2.0 - 1.0) / 2)

    def test_kl_in_the_loss_leaves_the_reward(self):
        groups = two_groups()
        reference = token_values(groups, seed=1)
        algorithm = AlgorithmConfig(kl_placement="loss")
        with_kl = only(build(groups, algorithm, reference=reference, kl_coefficient=0.25))
        without = only(build(groups, algorithm))
        assert with_kl.advantages.tolist() == without.advantages.tolist()
        assert by_tokens(with_kl, "reference_logprobs")[1, 4] == reference[0].values[3:].tolist()

    def test_old_logprobs_of_the_learner_measure_the_kl_and_the_gap(self):
        groups = two_groups()[:1]
        old = [as_values(groups[0], torch.tensor([0.0, -1.5, -2.0, 0.0, -0.25]))]
        reference = [as_values(groups[0], torch.tensor([0.0, -1.5, -2.0, 0.0, -1.25]))]
        batch = build(groups, reference=reference, old=old)
        assert batch.metrics["kl/reference"] == pytest.approx(0.5)
        assert batch.metrics["rollout/logprob_gap_mean"] == pytest.approx(0.25)
        assert batch.metrics["rollout/logprob_gap_max"] == pytest.approx(0.5)
        experience = only(batch)
        assert experience.old_logprobs_from is OldLogprobsFrom.LEARNER_BEFORE_UPDATE
        assert by_tokens(experience, "old_logprobs")[1, 2, 3] == [0.0, -1.5, -2.0]
        assert by_tokens(experience, "generator_logprobs")[1, 2, 3] == [0.0, -1.0, -2.0]

    def test_whitening_is_over_the_global_batch(self):
        groups = random_groups(3, num_groups=4, samples_per_group=3)
        plan = RankPlan(num_ranks=3, max_tokens_per_micro_batch=24)
        batch = build(groups, AlgorithmConfig(whiten_advantages=True), learner=plan)
        trained = torch.cat([e.advantages[e.loss_mask] for (e,) in batch.learner]).double()
        assert trained.mean().item() == pytest.approx(0.0, abs=1e-6)
        assert trained.std().item() == pytest.approx(1.0, abs=1e-6)

    def test_a_group_of_one_and_an_empty_answer(self):
        groups = [
            make_group(0, [[F, T]], [3.0], token_ids=[1, 2]),
            make_group(1, [[F, F], [F, T]], [1.0, 3.0], token_ids=[3, 4, 3, 5]),
        ]
        experience = only(build(groups, AlgorithmConfig(normalize_by_std=False)))
        # The empty answer has no token to train, but its reward is part of the baseline.
        assert by_tokens(experience, "advantages") == {
            (1, 2): [0.0, 0.0],
            (3, 4): [0.0, 0.0],
            (3, 5): [0.0, 1.0],
        }
        assert experience.num_sequences == 2
        assert experience.num_loss_tokens == 2

    def test_a_batch_without_a_trained_token(self):
        groups = [make_group(0, [[F, F], [F]], [1.0, 2.0])]
        values = token_values(groups, seed=0)
        algorithm = AlgorithmConfig(advantage="gae", whiten_advantages=True)
        batch = build(groups, algorithm, values=values, reference=values, old=values)
        experience = only(batch)
        assert (experience.num_loss_tokens, experience.num_sequences) == (0, 0)
        assert not experience.advantages.any()
        assert all(math.isfinite(value) for value in batch.metrics.values())


class TestGae:
    def test_equals_ground_truth(self):
        groups = random_groups(5, num_groups=4, samples_per_group=3)
        values = token_values(groups, seed=2)
        reference = token_values(groups, seed=3)
        algorithm = AlgorithmConfig(
            advantage="gae",
            gamma=0.95,
            gae_lambda=0.9,
            reward_clip=1.0,
            kl_placement="reward",
            kl_estimator="k3",
        )
        batch = build(groups, algorithm, values=values, reference=reference, kl_coefficient=0.1)
        experience = only(batch)
        advantages, returns = by_tokens(experience, "advantages"), by_tokens(experience, "returns")
        all_returns, all_errors = [], []
        for group, value, ref in zip(groups, values, reference, strict=True):
            lengths = group.lengths.tolist()
            rows = zip(
                group.token_ids.split(lengths),
                group.loss_mask.split(lengths),
                group.generator_logprobs.double().split(lengths),
                ref.values.double().split(lengths),
                value.values.double().split(lengths),
                group.rewards.tolist(),
                strict=True,
            )
            for ids, mask, logprobs, refs, old_values, outcome in rows:
                pairs = zip(logprobs.tolist(), refs.tolist(), strict=True)
                rewards = ground_truth.token_rewards(
                    outcome,
                    [ground_truth.kl(p, q, "k3") for p, q in pairs],
                    mask.tolist(),
                    kl_coefficient=0.1,
                    clip=1.0,
                )
                expected = ground_truth.gae_with_holes(
                    rewards, old_values.tolist(), mask.tolist(), 0.95, 0.9
                )
                key = tuple(ids.tolist())
                assert advantages[key] == pytest.approx(expected[0], abs=1e-6)
                assert returns[key] == pytest.approx(expected[1], abs=1e-6)
                all_returns += torch.tensor(expected[1])[mask].tolist()
                all_errors += (torch.tensor(expected[1]) - old_values)[mask].tolist()
        explained = 1 - (
            ground_truth.unbiased_variance(all_errors) / ground_truth.unbiased_variance(all_returns)
        )
        assert batch.metrics["value/explained_variance"] == pytest.approx(explained, abs=1e-5)
        assert batch.metrics["returns/mean"] == pytest.approx(
            ground_truth.mean(all_returns), abs=1e-5
        )

    def test_explained_variance_of_a_perfect_critic_and_of_constant_returns(self):
        groups = [make_group(0, [[T, T], [T]], [1.0, 3.0], token_ids=[1, 2, 3])]
        algorithm = AlgorithmConfig(advantage="gae", gae_lambda=1.0)
        perfect = [as_values(groups[0], torch.tensor([1.0, 1.0, 3.0]))]
        assert build(groups, algorithm, values=perfect).metrics["value/explained_variance"] == 1.0
        same = [make_group(0, [[T], [T]], [2.0, 2.0], token_ids=[1, 2])]
        values = [as_values(same[0], torch.tensor([0.0, 1.0]))]
        assert build(same, algorithm, values=values).metrics["value/explained_variance"] == 0.0


class TestGreedyAnswers:
    def test_are_a_baseline_and_are_not_trained_on(self):
        groups = [
            make_group(0, [[F, T, T], [F, T], [F, T]], [1.0, 3.0, 2.0]),
            make_group(1, [[F, T], [F, T]], [0.5, 0.25]),
        ]
        experience = only(build(groups, AlgorithmConfig(advantage="remax")))
        # The last of every group is greedy: 2.0 and 0.25.
        assert experience.lengths.shape[0] == 3
        assert sorted(experience.advantages[experience.loss_mask].tolist()) == [-1, -1, 0.25, 1]
        assert experience.num_loss_tokens == 4
        assert experience.num_sequences == 3
