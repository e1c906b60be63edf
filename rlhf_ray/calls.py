"""Calls to workers, as the driver holds them. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberName:
    """Name of one worker of a role, in errors and on the Ray dashboard.

    Attributes:
        incarnation: counts the workers that have had this place, from 1.
    """

    role: str
    rank: int
    incarnation: int = 1

    def __str__(self) -> str:
        place = f"{self.role}_{self.rank}"
        return place if self.incarnation == 1 else f"{place}.{self.incarnation}"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Call:
    """One method call on one worker, under way.

    Attributes:
        signal: small result that `CallWaiter.results` waits for and fetches.
        payload: reference to a large result, which is passed on and never fetched here.
        before: the call whose payload this call takes, if that call was not done yet. Its failure
            is a failure of this call too.
        work: name of the work in the record of times; "" for the phase of the wait, None for what
            is no work, such as a sign of life.
    """

    member: MemberName
    signal: Any
    payload: Any
    before: Call | None = None
    work: str | None = ""


class PendingCalls(Protocol):
    """Calls under way; each is taken out once, when it is done.

    For callers with thousands of calls under way: the cost of a wait does not grow with the
    number of calls that are not done.
    """

    def add(self, call: Call) -> None: ...

    def discard(self, call: Call) -> None:
        """Forget a call; it is not taken out, and its failure is not raised."""
        ...

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        """Wait until a call is done; take out all that are done then, with their signals' values.

        Calls of a worker that was lost, and that the run replaces, have a `losses.Lost` as value.

        Raises:
            RunFailed: as the methods of `CallWaiter`.
        """
        ...

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        """Take out all calls that are done by now, maybe none; wait for nothing.

        Raises:
            RunFailed: one has failed.
        """
        ...


class CallWaiter(Protocol):
    """Waits for calls. Every wait has a deadline; every failure names role, rank, phase, step.

    All methods raise `RunFailed` when a worker dies, fails, or is too late; `losses.MemberLost` if
    the run replaces this worker.
    """

    def begin_step(self, step: int) -> None:
        """Name `step` in all failures from now on."""
        ...

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        """Wait for all calls; return the values of their signals, in the order of the calls."""
        ...

    def pending(self) -> PendingCalls:
        """A set of calls, empty at first."""
        ...

    def meanwhile(self, work: Callable[[], None]) -> AbstractContextManager[None]:
        """Inside the context, do `work` many times during every wait of `results`.

        The work must not wait itself.
        """
        ...

    def stream(
        self, call: Call, *, phase: str, timeout_s: float, others: Sequence[Call] = ()
    ) -> Iterator[Any]:
        """Yield references to the items of a generator method, one by one, not fetched.

        Args:
            others: calls that the method needs to go on; a failure may be theirs.
        """
        ...
