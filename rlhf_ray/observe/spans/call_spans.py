"""When workers were at work, in few numbers whatever the number of their calls.

A span begins when the driver begins to wait for a call, and ends when the call is done. Of a call
that others must finish first, the span begins when those are done.
"""

from __future__ import annotations

from typing import NamedTuple

from rlhf_ray.calls import Call

# Of one worker and phase in one step: an engine that samples a thousand prompts has one.
MAX_SPANS = 4
# A shorter break between two calls is no break.
_SMALLEST_GAP_S = 0.002


class Span(NamedTuple):
    """A time of work, on the driver's monotonic clock.

    Attributes:
        calls: number of calls that were under way in it.
    """

    begin: float
    end: float
    calls: int = 1


class CallSpans:
    """Collects the spans of a step; knows the phase of the wait that is under way.

    Attributes:
        phase: of the wait that is under way.
    """

    def __init__(self) -> None:
        self.phase = ""
        self._spans: dict[str, dict[str, list[Span]]] = {}

    def add(self, call: Call, begin: float, end: float) -> None:
        """Note that a call was under way; nothing for one that is no work."""
        if call.work is not None and (phase := call.work or self.phase):
            spans = self._spans.setdefault(str(call.member), {}).setdefault(phase, [])
            spans[:] = joined(spans, Span(begin, max(begin, end)))

    def take(self) -> dict[str, dict[str, list[Span]]]:
        """The spans since the last call, by worker and phase; in order, without an overlap."""
        taken, self._spans = self._spans, {}
        return taken


def joined(spans: list[Span], new: Span) -> list[Span]:
    """Spans with one more; those that touch become one, and so do the nearest of too many."""
    apart: list[Span] = []
    for span in spans:
        if span.end + _SMALLEST_GAP_S < new.begin or new.end + _SMALLEST_GAP_S < span.begin:
            apart.append(span)
        else:
            new = _hull(span, new)
    found = sorted([*apart, new])
    if len(found) > MAX_SPANS:
        places = range(len(found) - 1)
        near = min(places, key=lambda place: found[place + 1].begin - found[place].end)
        found[near : near + 2] = [_hull(found[near], found[near + 1])]
    return found


def _hull(one: Span, other: Span) -> Span:
    return Span(min(one.begin, other.begin), max(one.end, other.end), one.calls + other.calls)
