"""Times of work: what is kept of them, and of which calls."""

from __future__ import annotations

import itertools
import random

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.observe.spans.call_spans import MAX_SPANS, CallSpans, Span, joined

ENGINE = MemberName(role="generator", rank=3)


def call(work: str | None = "") -> Call:
    return Call(member=ENGINE, signal=None, payload=None, work=work)


def busy(spans: list[tuple[float, float]], moments: range) -> set[int]:
    """The moments within the spans."""
    return {moment for moment in moments for begin, end in spans if begin <= moment <= end}


@pytest.mark.parametrize("seed", range(20))
def test_spans_are_the_union_of_the_calls_as_long_as_there_are_few(seed):
    values = random.Random(seed)
    calls = [(begin, begin + values.randint(1, 9)) for begin in values.sample(range(100), 12)]
    spans: list[Span] = []
    for begin, end in calls:
        spans = joined(spans, Span(begin, end))
        assert len(spans) <= MAX_SPANS
        assert all(a.end < b.begin for a, b in itertools.pairwise(spans))
    assert sum(span.calls for span in spans) == len(calls)
    kept = busy([(span.begin, span.end) for span in spans], range(120))
    every = busy(calls, range(120))
    assert every <= kept
    assert (min(kept), max(kept)) == (min(every), max(every))
    few: list[Span] = []
    for begin, end in calls[:MAX_SPANS]:
        few = joined(few, Span(begin, end))
    assert busy([(s.begin, s.end) for s in few], range(120)) == busy(calls[:4], range(120))


def test_of_too_many_the_nearest_become_one():
    spans: list[Span] = []
    for begin in (0, 10, 20, 25, 40):
        spans = joined(spans, Span(begin, begin + 1))
    assert spans == [(0, 1, 1), (10, 11, 1), (20, 26, 2), (40, 41, 1)]


def test_a_call_is_of_the_phase_of_the_wait_unless_it_names_its_work():
    spans = CallSpans()
    spans.add(call(), 0.0, 1.0)  # Nothing is waited for: a look around.
    spans.phase = "update"
    spans.add(call(), 1.0, 2.0)
    spans.add(call("generate"), 0.0, 5.0)
    spans.add(call(None), 0.0, 9.0)
    assert spans.take() == {"generator_3": {"update": [(1.0, 2.0, 1)], "generate": [(0.0, 5.0, 1)]}}
    assert spans.take() == {}
