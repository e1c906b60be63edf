"""Over-long responses and task weights on their way into experience, by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
import torch

from rlhf_ray.algorithms.rewards.task_rewards import RewardScale
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.build import ExperienceBatch, build_experience
from rlhf_ray.experience.reward_shaping import NO_SHAPING, RewardShaping, shape_rewards
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues
from tests.unit.training.builders import ONE_RANK, F, T, by_tokens, make_group, only

MEAN_ONLY = AlgorithmConfig(normalize_by_std=False)


def groups() -> list[RolloutGroup]:
    """Responses of 1, 2 and 4 tokens, the longest cut off; then two samples of another task."""
    first = make_group(
        0,
        [[F, T], [F, T, T], [F, T, T, T, T]],
        [1.0, 0.0, 2.0],
        token_ids=[1, 2, 1, 3, 3, 1, 4, 4, 4, 4],
    )
    second = make_group(1, [[F, T], [F, T]], [1.0, 0.0], token_ids=[5, 6, 5, 7])
    words = dataclasses.replace(second.prompt, source="words")
    return [
        dataclasses.replace(first, finish_reasons=("stop", "stop", "length")),
        dataclasses.replace(second, prompt=words),
    ]


def build(
    shaping: RewardShaping,
    algorithm: AlgorithmConfig = MEAN_ONLY,
    scales: Mapping[str, RewardScale] | None = None,
    values: Sequence[TokenValues] | None = None,
) -> ExperienceBatch:
    return build_experience(
        groups(),
        reference=None,
        values=values,
        old=None,
        old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE,
        algorithm=algorithm,
        coefficients=Coefficients(reward_scales=scales or {}),
        learner=ONE_RANK,
        critic=None if values is None else ONE_RANK,
        seed=0,
        step=0,
        shaping=shaping,
    )


def advantages(experience: Experience) -> dict[int, float]:
    """Advantages of the last token of every sample, by that token."""
    return {
        tokens[-1]: values[-1] for tokens, values in by_tokens(experience, "advantages").items()
    }


def test_nothing_is_done_by_default():
    before = groups()
    shaped, metrics = shape_rewards(before, NO_SHAPING)
    assert all(new is old for new, old in zip(shaped, before, strict=True))
    assert metrics == {}
    assert advantages(only(build(NO_SHAPING))) == {2: 0.0, 3: -1.0, 4: 1.0, 6: 0.5, 7: -0.5}


def test_long_responses_lose_reward():
    shaping = RewardShaping(max_response_tokens=4, overlong_buffer_tokens=3, overlong_penalty=3.0)
    batch = build(shaping)
    # 2 tokens are 1 into the buffer, 4 are 3: rewards 1, 0 - 1, 2 - 3, about their mean -1/3.
    expected = {2: 4 / 3, 3: -2 / 3, 4: -2 / 3, 6: 0.5, 7: -0.5}
    assert advantages(only(batch)) == pytest.approx(expected)
    assert batch.metrics["rollout_selection/overlong_penalty_mean"] == pytest.approx(4 / 5)


def test_the_groups_that_came_in_stay_as_scored():
    before = groups()
    shaping = RewardShaping(
        max_response_tokens=4, overlong_buffer_tokens=3, overlong_penalty=3.0, overlong_filter=True
    )
    shape_rewards(before, shaping)
    assert before[0].rewards.tolist() == [1.0, 0.0, 2.0]
    assert int(before[0].loss_mask.sum()) == 7


def test_truncated_responses_get_no_gradient_and_stay_in_the_baseline():
    batch = build(RewardShaping(overlong_filter=True))
    experience = only(batch)
    # The baseline of the first group is still (1 + 0 + 2) / 3.
    assert advantages(experience) == {2: 0.0, 3: -1.0, 4: 0.0, 6: 0.5, 7: -0.5}
    assert experience.num_loss_tokens == 5
    assert experience.num_sequences == 4
    assert not any(by_tokens(experience, "loss_mask")[1, 4, 4, 4, 4])
    assert not any(by_tokens(experience, "generator_logprobs")[1, 4, 4, 4, 4])
    assert batch.metrics["rollout_selection/overlong_filtered_fraction"] == pytest.approx(1 / 5)


def test_a_batch_of_truncated_responses_has_a_count_of_nothing():
    cut = [
        dataclasses.replace(group, finish_reasons=("length",) * group.num_samples)
        for group in groups()
    ]
    shaped, metrics = shape_rewards(cut, RewardShaping(overlong_filter=True))
    assert not any(bool(group.loss_mask.any()) for group in shaped)
    assert metrics == {"rollout_selection/overlong_filtered_fraction": 1.0}


@pytest.mark.parametrize("whiten", [False, True])
def test_weights_multiply_the_advantages_of_their_task(whiten):
    algorithm = AlgorithmConfig(normalize_by_std=False, whiten_advantages=whiten)
    plain = advantages(only(build(NO_SHAPING, algorithm)))
    weighed = advantages(only(build(RewardShaping(task_weights={"words": 3.0}), algorithm)))
    factors = {2: 1.0, 3: 1.0, 4: 1.0, 6: 3.0, 7: 3.0}
    expected = {token: plain[token] * factors[token] for token in plain}
    assert weighed == pytest.approx(expected)


def test_weights_change_no_count():
    plain, weighed = (
        only(build(RewardShaping(task_weights=weights))) for weights in ({}, {"words": 0.0})
    )
    assert weighed.num_loss_tokens == plain.num_loss_tokens
    assert weighed.num_sequences == plain.num_sequences
    assert torch.equal(weighed.loss_mask, plain.loss_mask)


# Of the rewards 1, 0, 2 of one task, and of made-up ones of the other.
SCALES = {
    "test": RewardScale(mean=1.0, deviation=2.0),
    "words": RewardScale(mean=-9.0, deviation=20.0),
}


def test_rewards_are_normalised_by_their_task():
    zero = [
        TokenValues(prompt_id=group.prompt.prompt_id, values=torch.zeros(len(group.token_ids)))
        for group in groups()
    ]
    algorithm = AlgorithmConfig(advantage="gae", gae_lambda=1.0)
    batch = build(NO_SHAPING, algorithm, SCALES, zero)
    # What the critic learns too: there is one scale for both tasks.
    expected = {2: 0.0, 3: -0.5, 4: 0.5, 6: 0.5, 7: 0.45}
    assert advantages(only(batch)) == pytest.approx(expected)
    ((experience,),) = batch.critic
    returns = {t[-1]: v[-1] for t, v in by_tokens(experience, "returns").items()}
    assert returns == pytest.approx(expected)
    assert batch.metrics["reward/normalized_mean/test"] == pytest.approx(0.0)
    assert batch.metrics["reward/normalized_std/test"] == pytest.approx(0.5)
    assert batch.metrics["reward/normalized_mean/words"] == pytest.approx(0.475)


def test_a_group_baseline_takes_the_shift_out_and_keeps_the_scale():
    found = advantages(only(build(NO_SHAPING, MEAN_ONLY, SCALES)))
    assert found == pytest.approx({2: 0.0, 3: -0.5, 4: 0.5, 6: 0.025, 7: -0.025})


def test_penalties_are_in_units_of_normalised_rewards():
    shaping = RewardShaping(max_response_tokens=4, overlong_buffer_tokens=3, overlong_penalty=3.0)
    found = advantages(only(build(shaping, MEAN_ONLY, SCALES)))
    # 0, -0.5 - 1 and 0.5 - 3 about their mean -4/3.
    assert found == pytest.approx({2: 4 / 3, 3: -1 / 6, 4: -7 / 6, 6: 0.025, 7: -0.025})


def test_a_clip_is_in_units_of_normalised_rewards():
    clipped = AlgorithmConfig(normalize_by_std=False, reward_clip=0.25)
    found = advantages(only(build(NO_SHAPING, clipped, SCALES)))
    assert found == pytest.approx({2: 0.0, 3: -0.25, 4: 0.25, 6: 0.0, 7: 0.0})


def test_without_scales_rewards_are_as_scored():
    batch = build(NO_SHAPING)
    assert not [name for name in batch.metrics if name.startswith("reward/normalized")]
