"""Calls under way: which are taken out, and what a question about a lost worker costs."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.pending import CallSet
from rlhf_ray.observe.spans.call_spans import CallSpans

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


def test_times_of_a_chain_of_calls_follow_each_other():
    spans = CallSpans()
    spans.phase = "score"
    first = call_of(FIRST)
    last = Call(member=SECOND, signal=Signal(), payload=None, before=first)
    given_up = call_of(FIRST)
    pending = CallSet([last, given_up], spans)
    begun = time.monotonic()
    pending.discard(given_up)
    for call in (first, last):
        time.sleep(0.02)
        call.signal.result.set_result(1)
    done_at = time.monotonic()
    time.sleep(0.02)  # The driver takes it out later than it was done.
    assert [done for done, _ in pending.take_done(1.0)] == [last]
    found = {name: of_worker["score"] for name, of_worker in spans.take().items()}
    [(begin, middle, _)], [(same, end, _)] = found[str(FIRST)], found[str(SECOND)]
    assert begin <= begun
    assert middle == same
    assert begun + 0.02 <= middle
    assert middle + 0.02 <= end <= done_at


def test_what_is_no_work_is_not_fetched_for_the_record_of_times():
    """A future of Ray's fetches its object: a bucket of weights must not come to the driver."""

    class Large(Signal):
        def future(self) -> Future[Any]:
            raise AssertionError("fetched")

    bucket = Call(member=FIRST, signal=Large(), payload=None, work=None)
    load = Call(member=SECOND, signal=Signal(), payload=None, before=bucket)
    pending = CallSet([load], spans=CallSpans())
    load.signal.result.set_result(1)
    assert [call for call, _ in pending.take_done(0.0)] == [load]
