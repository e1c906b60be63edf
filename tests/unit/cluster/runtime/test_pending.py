"""Calls under way: which are taken out, and what a question about a lost worker costs."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.pending import CallSet

FIRST, SECOND = (MemberName(role="generator", rank=rank) for rank in range(2))


@dataclass(eq=False)
class Signal:
    """A reference of Ray, as far as a set of calls uses it."""

    result: Future[Any] = field(default_factory=Future)

    def future(self) -> Future[Any]:
        return self.result


def call_of(member: MemberName) -> Call:
    return Call(member=member, signal=Signal(), payload=None)


class Walked(dict[Call, None]):
    """Counts how often all calls are walked through."""

    num_walks = 0

    def __iter__(self):
        self.num_walks += 1
        return super().__iter__()


def test_calls_of_a_lost_worker_are_taken_out_once():
    calls = [call_of(FIRST), call_of(SECOND), call_of(FIRST)]
    pending = CallSet([*calls, calls[0]])
    assert pending.has_of({FIRST})
    assert pending.take_of({FIRST}) == [calls[0], calls[2]]
    assert not pending.has_of({FIRST})
    assert pending.take_of({FIRST}) == []
    assert pending.calls == [calls[1]]
    calls[0].signal.result.set_result(1)
    assert pending.take_done(0.0) == [], "what a lost worker answers late counts no more"


@pytest.mark.parametrize("how", ["done", "discarded"])
def test_a_worker_whose_calls_are_gone_has_none(how):
    call, other = call_of(FIRST), call_of(SECOND)
    pending = CallSet([call, call, other])
    if how == "done":
        call.signal.result.set_result(1)
        assert [done for done, _ in pending.take_done(1.0)] == [call]
    else:
        pending.discard(call)
        pending.discard(call)
    assert not pending.has_of({FIRST})
    assert pending.has_of({FIRST, SECOND})
    pending.add(call)
    assert pending.has_of({FIRST})


def test_no_call_is_looked_at_for_a_worker_that_has_none():
    """After a loss, a wait asks for the lost worker whenever another call is done."""
    calls = [call_of(SECOND) for _ in range(20)]
    pending = CallSet(calls)
    pending._calls = walked = Walked(pending._calls)
    for call in calls:
        call.signal.result.set_result(1)
        assert not pending.has_of({FIRST})
        pending.take_done(1.0)
        assert pending.take_of({FIRST}) == []
    assert walked.num_walks == 0
    assert len(pending) == 0
