"""Groups on their way through several scorers: who gets the next, and who is to blame."""

from __future__ import annotations

import pytest
import ray

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.rewards import ReplicatedScorer, RewardGroup, ShardedScorer
from rlhf_ray.config.errors import RunFailed
from tests.ray.troupe import Troupe

TIMEOUT_S = 60


def given(troupe: Troupe, group) -> Call:
    """A call of nobody in particular that has this group as its result."""
    return Call(member=troupe.members[0].name, signal=ray.put(None), payload=ray.put(group))


def test_a_group_goes_from_one_scorer_to_the_next(shared_troupe):
    rewards = RewardGroup(shared_troupe.members[:1], [ReplicatedScorer(shared_troupe.members[1:])])
    call = rewards.score(0, [ray.put("a"), ray.put("b")])
    assert shared_troupe.wait(call) == ["scored by 1"]
    assert ray.get(call.payload, timeout=TIMEOUT_S) == ["a", "b", 0, 1]


def test_the_least_loaded_scorer_gets_the_next_group(shared_troupe):
    scorers = ReplicatedScorer(shared_troupe.members)
    busy = shared_troupe.members[0].handle.answer.remote("busy", 2.0)
    first = scorers.score(given(shared_troupe, []))
    second = scorers.score(given(shared_troupe, []))
    assert [str(call.member) for call in (first, second)] == ["puppet_0", "puppet_1"]
    shared_troupe.wait(second)
    # The first one still has something to do.
    assert str(scorers.score(given(shared_troupe, [])).member) == "puppet_1"
    ray.get(busy, timeout=TIMEOUT_S)
    shared_troupe.wait(first)
    assert str(scorers.score(given(shared_troupe, [])).member) == "puppet_0"


def test_the_worker_that_failed_first_is_named(shared_troupe):
    rewards = RewardGroup(shared_troupe.members[:1], [ReplicatedScorer(shared_troupe.members[1:])])
    with pytest.raises(RunFailed, match=r"^puppet_0 failed .*ValueError: no such group"):
        shared_troupe.wait(rewards.score(0, [ray.put("bad")]))
    before = given(shared_troupe, ["bad"])
    with pytest.raises(RunFailed, match=r"^puppet_1 failed .*ValueError: no such group"):
        shared_troupe.wait(ReplicatedScorer(shared_troupe.members[1:]).score(before))


def test_the_worker_that_others_wait_for_is_named(troupe):
    troupe.members[0].handle.answer.remote("busy", 30)
    rewards = RewardGroup(troupe.members[:1], [ReplicatedScorer(troupe.members[1:])])
    assert troupe.failure(rewards.score(0, [ray.put("a")]), timeout_s=1).startswith(
        "puppet_0 did not answer in 1 s"
    )


def test_the_rank_that_dies_is_named(troupe):
    """Rank 0 has the result, and rank 1 dies of the group."""
    ranks = ShardedScorer(troupe.members)
    assert ray.get(ranks.score(given(troupe, ["a"])).payload, timeout=TIMEOUT_S) == ["a", 0]
    with pytest.raises(RunFailed, match=r"^puppet_1 died"):
        troupe.wait(ranks.score(given(troupe, ["deadly"])))
