"""Outcomes of a scorer: a part of the reward, or a failure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from rlhf_ray.config.groups.reward import RewardConfig, ScorerPart
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.rewards.scorer import scored_by
from rlhf_ray.rewards.worker import RewardWorker
from tests.unit.rewards.conftest import build_group, build_step_group

pytestmark = pytest.mark.unit_slow

LOST = ItemFailure(kind=FailureKind.REWARD_TIMEOUT, message="no answer came")


class Given:
    """Scorer with given outcomes; it records the groups that it is asked about."""

    def __init__(self, *outcomes: Outcome, weight: float = 1.0, name: str = "judge") -> None:
        self.part = ScorerPart(group="reward.judge", name=name, weight=weight)
        self.asked: list[RolloutGroup] = []
        self._outcomes = outcomes

    def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        self.asked.append(group)
        return self._outcomes


@pytest.fixture
def scored(make_worker):
    """A group of two samples: by length, half of it counts."""
    worker = make_worker({"path": "length", "weight": 0.5, "arguments": {"target": 1}})
    group, _ = worker.score(build_group("a", "bbb"))
    assert group.rewards.tolist() == [0.5 * v for v in group.reward_parts["length"].tolist()]
    return group


def test_the_part_is_added_with_its_weight(scored):
    group, summary = scored_by(Given(2.0, -1.0, weight=3.0), scored)
    assert group.reward_parts["judge"].tolist() == [2.0, -1.0]
    assert set(summary.reward_parts) == {"length", "judge"}
    expected = (scored.rewards + 3.0 * torch.tensor([2.0, -1.0])).tolist()
    assert group.rewards.tolist() == list(summary.rewards) == expected
    assert group.rewards.dtype == torch.float64


@pytest.mark.parametrize("outcome", [math.nan, math.inf, -math.inf, 1e308, 1e38])
def test_a_score_that_is_no_finite_number_is_a_failure(scored, outcome):
    group, summary = scored_by(Given(1.0, outcome, weight=10.0), scored)
    (failure,) = summary.failures
    assert (failure.sample_index, failure.kind) == (1, FailureKind.REWARD_NOT_FINITE)
    assert failure.message.startswith("reward 'judge': ")
    assert group.sample_indices == (0,)
    assert group.reward_parts["judge"].tolist() == [1.0]


def test_a_failure_stays_one(scored):
    group, summary = scored_by(Given(LOST, 1.0), scored)
    (failure,) = summary.failures
    assert (failure.sample_index, failure.kind) == (0, FailureKind.REWARD_TIMEOUT)
    assert failure.message == "reward 'judge': no answer came"
    assert group.sample_indices == (1,)
    assert group.reward_parts["length"].shape == group.rewards.shape == (1,)


def test_a_group_with_a_failure_is_not_asked_about(scored):
    failed, _ = scored_by(Given(LOST, 1.0, name="first"), scored)
    second = Given(1.0)
    group, summary = scored_by(second, failed)
    assert (second.asked, group) == ([], failed)
    assert len(summary.failures) == 1


def test_all_samples_may_fail(scored):
    group, summary = scored_by(Given(LOST, LOST), scored)
    assert group.num_samples == 0
    assert len(summary.failures) == 2


def test_without_functions_the_worker_merges_and_the_scorer_is_all():
    reward = RewardConfig()
    reward.model.path = "somewhere"
    worker = RewardWorker(reward)
    worker.start()
    group, summary = worker.score(
        build_group("b", indices=(1,)), build_group("a", "c", indices=(0, 2))
    )
    assert summary.rewards == (0.0, 0.0, 0.0)
    assert group.responses == ("a", "b", "c")
    assert scored_by(Given(1.0, 2.0, 3.0), group)[1].rewards == (1.0, 2.0, 3.0)
    worker.close()


@pytest.mark.parametrize(("weight", "expected"), [(2.0, (6.0, True)), (0.0, (0.0, False))])
def test_in_a_run_of_steps_the_part_is_the_last_step(weight, expected):
    reward = RewardConfig()
    reward.model.path = "somewhere"
    worker = RewardWorker(reward)
    group, _ = worker.score(build_step_group("ab", "c"))
    group, summary = scored_by(Given(3.0, 3.0, weight=weight), group)
    assert all(
        (group.steps.rewards[place].item(), group.steps.ends[place].item()) == expected
        for place in [int(end) - 1 for end in group.lengths.cumsum(0)]
    )
    assert int(group.steps.ends.sum()) == (2 if weight else 0)
    assert summary.step_rewards == (((6.0,), (6.0,)) if weight else ((), ()))
