"""Snapshots of the roles that train: in memory outside of the ranks, the last whole one kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.healing.parts import StatefulRole
from rlhf_ray.losses import Lost


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The states of all ranks after `step` steps.

    Attributes:
        states: of every role, references in the order of its ranks.
        num_bytes: over all ranks.
    """

    step: int
    states: Mapping[str, tuple[Any, ...]]
    num_bytes: int = 0


class Snapshots:
    """Takes snapshots while the run goes on.

    A rank copies its state between two other calls, in the order in which they were made: a
    snapshot that is asked for after a publish is of that moment, and costs the run nothing while
    the engines sample. The one before stays until all ranks have copied.
    """

    def __init__(self, roles: Mapping[str, StatefulRole], waiter: CallWaiter) -> None:
        self._roles = roles
        self._waiter = waiter
        self._last: Snapshot | None = None
        self._next: Snapshot | None = None
        self._missing: set[Call] = set()
        self._calls = waiter.pending()

    @property
    def last(self) -> Snapshot | None:
        """The newest whole one."""
        return self._last

    def begin(self, step: int) -> None:
        """Ask all ranks for their state after `step` steps; waits for nothing."""
        self.drop_begun()
        calls = {name: role.take_state() for name, role in self._roles.items()}
        self._missing = {call for own in calls.values() for call in own}
        self._next = Snapshot(
            step=step,
            states={name: tuple(call.payload for call in own) for name, own in calls.items()},
        )
        for call in self._missing:
            self._calls.add(call)

    def take_in(self) -> None:
        """See whether the one that was begun is whole by now; waits for nothing.

        Raises:
            RunFailed: a rank failed.
        """
        for call, value in self._calls.take_ready(phase="checkpoint"):
            if self._next is not None and not isinstance(value, Lost):
                self._missing.remove(call)
                self._next = replace(self._next, num_bytes=self._next.num_bytes + value)
        if self._next is not None and not self._missing:
            self._last, self._next = self._next, None

    def drop_begun(self) -> None:
        """Forget the one that is not whole."""
        for call in self._missing:
            self._calls.discard(call)
        self._missing.clear()
        self._next = None
