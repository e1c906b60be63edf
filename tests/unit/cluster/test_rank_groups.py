"""Samples scattered over ranks, of which some compute every sample together."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.roles.critic import CriticGroup
from rlhf_ray.cluster.roles.fit import OfflineGroup
from rlhf_ray.cluster.roles.learner import LearnerGroup
from rlhf_ray.cluster.roles.run_roles import run_roles
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.config.load import load_config


class RemoteMethod:
    """A remote method that answers with its rank, its name and its arguments."""

    def __init__(self, rank: int, name: str) -> None:
        self._call = (rank, name)

    def options(self, **_: Any) -> RemoteMethod:
        return self

    def remote(self, *arguments: Any) -> tuple[Any, ...]:
        return (*self._call, arguments)


class Handle:
    """Handle of an actor with any method."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __getattr__(self, name: str) -> RemoteMethod:
        return RemoteMethod(self._rank, name)


def members(count: int) -> list[Member]:
    info = ProcessInfo(pid=1, created=0.0, node_id="", stdout_path="", stderr_path="", gpu_ids=())
    return [
        Member(name=MemberName(role="learner", rank=rank), handle=Handle(rank), info=info)
        for rank in range(count)
    ]


def test_ranks_of_a_group_score_the_same_groups():
    learner = LearnerGroup(members(4), ranks_per_sample=2)
    calls = learner.score(["a", "b", "c"], [5, 9, 3])
    assert [call.signal for call in calls] == [
        (0, "score", ("b",)),
        (1, "score", ("b",)),
        (2, "score", ("a", "c")),
        (3, "score", ("a", "c")),
    ]


def test_ranks_of_a_group_learn_from_the_same_share():
    learner = LearnerGroup(members(4), ranks_per_sample=2)
    coefficients: Any = "coefficients"
    calls = learner.update(["x", "y"], texts=["t", "u"], coefficients=coefficients)
    assert [call.signal[2] for call in calls] == [
        ("x", "t", coefficients),
        ("x", "t", coefficients),
        ("y", "u", coefficients),
        ("y", "u", coefficients),
    ]
    critic = CriticGroup(members(4), ranks_per_sample=4)
    assert [call.signal[2] for call in critic.update(["x"])] == [("x",)] * 4
    with pytest.raises(AssertionError, match="4 shares for 1 groups"):
        critic.update(["x"] * 4)


def test_one_answer_of_a_group_and_every_failure():
    ranks = OfflineGroup(members(6), ranks_per_sample=3)
    calls = ranks.score_answers(["x", "y"])
    assert [call.signal for call in calls] == [
        (0, "score_answers", ("x",)),
        (3, "score_answers", ("y",)),
    ]
    waited = []
    for call in calls:
        while call is not None:
            waited.append(call.member.rank)
            call = call.before
    assert sorted(waited) == [0, 1, 2, 3, 4, 5]
    assert [call.signal[2] for call in ranks.update(["x", "y"])] == [(["x"],)] * 3 + [(["y"],)] * 3


@pytest.mark.parametrize("kind", ["sequence", "tensor"])
def test_roles_say_how_many_ranks_compute_a_sample(kind):
    split = ["critic.num_ranks=4", f"critic.{kind}_parallel_size=4"]
    roles = run_roles(load_config(["recipe=demo_ppo", *split]))
    assert roles.ranks_per_sample("critic") == 4
    assert roles.ranks_per_sample("learner") == 1
    assert roles.ranks_per_sample("nobody") == 1
