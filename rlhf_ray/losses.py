"""Workers that a run can lose and go on: the loss itself, who decides, and waits that bear it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter, MemberName
from rlhf_ray.config.errors import RunFailed

# Answers of the others after a loss: they are there already, or come as soon as they would have.
_SHORTEST_WAIT_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """The loss of one worker that the run goes on without.

    Takes the place of a signal: every call of this worker that is under way ends with it, and
    what the worker answers later is not looked at.

    Attributes:
        what: the event in some words, with the name of the worker.
        phase, step: where the run noticed it.
    """

    member: MemberName
    what: str
    reason: str
    phase: str
    step: int

    def __str__(self) -> str:
        return f"{self.what} (phase {self.phase}, step {self.step}): {self.reason}"


class MemberLost(RunFailed):
    """A wait had a call of a lost worker. Uncaught, it ends the run with the cause."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(str(lost))
        self.lost = lost


class LossKeeper(Protocol):
    """Decides which losses a run survives. Without one, every loss ends the run."""

    def replaces(self, member: MemberName) -> bool:
        """Whether workers of this role are replaced at all."""
        ...

    def lose(self, lost: Lost) -> str:
        """Take note of a loss; returns "" if the run goes on, else the reason why it cannot."""
        ...

    def look(self) -> None:
        """Look around; called about twice a second during every wait. Must not wait itself.

        Raises:
            RunFailed: the run cannot go on.
        """
        ...


class LossKeepers:
    """Several keepers as one; each replaces workers of its own roles."""

    def __init__(self, keepers: Sequence[LossKeeper]) -> None:
        self._keepers = tuple(keepers)

    def replaces(self, member: MemberName) -> bool:
        return any(keeper.replaces(member) for keeper in self._keepers)

    def lose(self, lost: Lost) -> str:
        keeper = next(keeper for keeper in self._keepers if keeper.replaces(lost.member))
        return keeper.lose(lost)

    def look(self) -> None:
        for keeper in self._keepers:
            keeper.look()


class LossWaiter(CallWaiter, Protocol):
    """A `CallWaiter` that can be told of losses."""

    @property
    def step(self) -> int:
        """The step that failures are named with."""
        ...

    def tend(self, keeper: LossKeeper) -> None:
        """From now on `keeper` decides on losses."""
        ...

    def report_lost(self, member: MemberName, *, what: str, reason: str) -> None:
        """Take a worker for lost though no call has shown it: it is silent, or was refused.

        Raises:
            RunFailed: the run cannot go on without it.
        """
        ...


def answers_of_rest(
    waiter: CallWaiter, calls: Sequence[Call], *, phase: str, timeout_s: float
) -> list[tuple[Call, Any]]:
    """Wait for calls of several workers; leave out those of workers that are lost meanwhile.

    Returns:
        calls with their signals' values, in the order of the calls.

    Raises:
        RunFailed: one failed or was late, and its loss ends the run.
    """
    deadline = time.monotonic() + timeout_s
    left, wait_s = list(calls), timeout_s
    while True:
        try:
            values = waiter.results(left, phase=phase, timeout_s=wait_s)
        except MemberLost as error:
            rest = [call for call in left if call.member != error.lost.member]
            if len(rest) == len(left):
                raise  # The loss of a worker that none of the calls is of.
            left, wait_s = rest, max(_SHORTEST_WAIT_S, deadline - time.monotonic())
            continue
        return list(zip(left, values, strict=True))
