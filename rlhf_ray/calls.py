"""What the driver holds of work that is going on elsewhere. Knows no Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberName:
    """One worker of a role, as errors and the Ray dashboard name it."""

    role: str
    rank: int

    def __str__(self) -> str:
        return f"{self.role}_{self.rank}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """One method call on one worker, under way.

    Attributes:
        signal: what is waited for and fetched; the value of `CallWaiter.results`.
        payload: reference to a large result that is passed on and never fetched here.
        before: the call whose payload this one takes, where it was made before that was done. A
            failure of that one is this one's too.
    """

    member: MemberName
    signal: Any
    payload: Any
    before: Call | None = None


class CallWaiter(Protocol):
    """Waits for calls. Every wait has a deadline; every failure names role, rank, phase, step.

    All methods raise `RunFailed` when a worker dies, fails, or is too late.
    """

    def begin_step(self, step: int) -> None:
        """The step that failures from now on belong to."""
        ...

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        """The signals' values, in the order of the calls."""
        ...

    def some_done(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Call]:
        """Those of the calls that are done: at least one, as soon as there is one."""
        ...

    def stream(self, call: Call, *, phase: str, timeout_s: float) -> Iterator[Any]:
        """References to what a generator method yields, one by one, not fetched."""
        ...
