"""Waiting for actors with a deadline, and saying who failed, where and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.deaths import cause, headline, is_death, is_loss
from rlhf_ray.cluster.runtime.failure_stacks import failure_report
from rlhf_ray.cluster.runtime.pending import (
    CallSet,
    Done,
    SupervisedCalls,
    chain_of,
    error_of,
    unfinished_of,
)
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.config.errors import RunFailed, ToldFailure
from rlhf_ray.losses import LossKeeper, Lost, MemberLost
from rlhf_ray.observe.spans.call_spans import CallSpans

# After a first failure, how long others get to show that they failed first: a rank whose
# peer was killed reports a lost connection before Ray reports the death.
_ROOT_CAUSE_WAIT_S = 3.0
# Of late workers, in a message.
_MAX_NAMES = 8
_ROUNDING_S = 0.5
# How often work is done during a wait; see `Supervisor.meanwhile`.
_WORK_EVERY_S = 0.1
# How often a keeper of losses looks around during a wait.
_LOOK_EVERY_S = 0.5
# Phases whose deadline is that of another one.
_DEADLINES = {"score": "generate", "build": "reference", "refresh": "publish"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One actor: its name, its handle, its process."""

    name: MemberName
    handle: Any
    info: ProcessInfo


class Supervisor:
    """The `CallWaiter` over Ray actors.

    Args:
        limits: value of every deadline by its key, such as `generate_s`, for messages.
    """

    def __init__(self, limits: Mapping[str, float] | None = None) -> None:
        self._limits = dict(limits or {})
        self._members: dict[MemberName, Member] = {}
        self._step = 0
        self._work: Callable[[], None] | None = None
        self._keeper: LossKeeper | None = None
        self._lost: dict[MemberName, Lost] = {}
        self._looked = 0.0
        self.spans = CallSpans()  # And the phase of the wait that is under way.

    def add(self, member: Member) -> None:
        self._members[member.name] = member

    def forget(self, member: MemberName) -> None:
        """No report looks at this worker any more: it was ended on purpose."""
        self._members.pop(member, None)

    def tend(self, keeper: LossKeeper) -> None:
        """See `losses.LossWaiter`."""
        self._keeper = keeper

    def report_lost(self, member: MemberName, *, what: str, reason: str) -> None:
        """See `losses.LossWaiter`."""
        failure = self._loss(member, what, reason, self.spans.phase)
        if not isinstance(failure, MemberLost):
            raise failure

    @property
    def step(self) -> int:
        return self._step

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    def begin_step(self, step: int) -> None:
        self._step = step

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        """The signals' values, in the order of the calls.

        Raises:
            RunFailed: a worker died, failed, or was not done in time.
        """
        return self._results(calls, (), phase, timeout_s)

    def _results(
        self, calls: Sequence[Call], causes: Sequence[Call], phase: str, timeout_s: float
    ) -> list[Any]:
        """See `results`. Failures of `causes` are looked for behind a failure."""
        deadline = time.monotonic() + timeout_s
        pending = CallSet(calls, self.spans)
        values: dict[Call, Any] = {}
        while len(pending):
            self.spans.phase = phase
            done = self._some_done(pending, deadline, self._work)
            if lost := self._taken_lost(pending):
                raise MemberLost(lost[0][1])
            if not done:
                raise self._late(pending.calls, phase, timeout_s, may_lose=True)
            for call, future in done:
                if call.member in self._lost:
                    raise MemberLost(self._lost[call.member])
                if error := error_of(future):
                    others = [c for c in calls if c is not call and c not in values]
                    raise self._failed(call, error, [*others, *causes], phase)
                values[call] = future.result()
        return [values[call] for call in calls]

    @contextmanager
    def meanwhile(self, work: Callable[[], None]) -> Iterator[None]:
        """See `calls.CallWaiter`."""
        before, self._work = self._work, work
        try:
            yield
        finally:
            self._work = before

    def _some_done(
        self, pending: CallSet, deadline: float, work: Callable[[], None] | None
    ) -> list[Done]:
        """Take the finished calls out of a set, as `CallSet.take_done`, and work meanwhile.

        Returns without any as soon as a worker of the set is lost.
        """
        every_s = _LOOK_EVERY_S if work is None else _WORK_EVERY_S
        while True:
            left_s = deadline - time.monotonic()
            if work is None and self._keeper is None:
                return pending.take_done(left_s)
            if work is not None:
                work()
            self._look()
            if self._lost and pending.has_of(self._lost):
                return []
            done = pending.take_done(min(left_s, every_s))
            if done or left_s <= every_s:
                return done

    def _look(self) -> None:
        now = time.monotonic()
        if self._keeper is not None and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            self._keeper.look()

    def _taken_lost(self, pending: CallSet) -> list[tuple[Call, Lost]]:
        """Take the calls of lost workers out of a set."""
        taken = pending.take_of(self._lost) if self._lost else []
        return [(call, self._lost[call.member]) for call in taken]

    def pending(self) -> SupervisedCalls:
        """A set of calls, empty at first."""
        return SupervisedCalls(self.take_done, self.take_ready, self.spans)

    def take_done(
        self, pending: CallSet, *, phase: str, timeout_s: float
    ) -> list[tuple[Call, Any]]:
        """Take the finished calls out of a set: at least one, as soon as there is one.

        Raises:
            RunFailed: one has failed, or none was done in time.
        """
        self.spans.phase = phase
        done = self._some_done(pending, time.monotonic() + timeout_s, None)
        taken = [*self._values(done, phase), *self._taken_lost(pending)]
        if not taken:
            raise self._late(pending.calls, phase, timeout_s)
        return taken

    def take_ready(self, pending: CallSet, *, phase: str) -> list[tuple[Call, Any]]:
        """Take the calls that are done by now out of a set.

        Args:
            phase: "" for that of the wait within which this is called.

        Raises:
            RunFailed: one has failed.
        """
        values = self._values(pending.take_done(0.0), phase or self.spans.phase)
        return [*values, *self._taken_lost(pending)]

    def _values(self, done: Sequence[Done], phase: str) -> list[tuple[Call, Any]]:
        values: list[tuple[Call, Any]] = []
        for call, future in done:
            if call.member not in self._lost and (error := error_of(future)):
                # The cause is this call or one before it: the others are requests of their own.
                failure = self._failed(call, error, [], phase)
                if call.member not in self._lost:
                    raise failure
            # What a lost worker answers late counts no more.
            lost = self._lost.get(call.member)
            values.append((call, future.result() if lost is None else lost))
        return values

    def stream(
        self, call: Call, *, phase: str, timeout_s: float, others: Sequence[Call] = ()
    ) -> Iterator[Any]:
        """References to what a generator method yields; each in time, none fetched.

        The method yields a small signal before every item: the signal is fetched, so that an
        error is that of the source and not of whoever consumes the item.

        Raises:
            RunFailed: the worker died, failed, or an item was not there in time.
        """
        while (signal := self._next_of(call, phase, timeout_s)) is not None:
            item = Call(member=call.member, signal=signal, payload=None)
            self._results([item], others, phase, timeout_s)
            yield self._next_of(call, phase, timeout_s)

    def _next_of(self, call: Call, phase: str, timeout_s: float) -> Any | None:
        ready, _ = ray.wait([call.signal], timeout=timeout_s, fetch_local=False)
        if not ready:
            raise self._late([call], phase, timeout_s, may_lose=True)
        return next(call.signal, None)

    def _failed(
        self, call: Call, error: RayError, pending: Sequence[Call], phase: str
    ) -> RunFailed:
        """The failure of a call, or the death of another worker that led to it."""
        calls = [earlier for last in (call, *pending) for earlier in chain_of(last)]
        failures = {call.member: error, **self._failures_of([c for c in calls if c is not call])}
        # What others waited for comes first: it is the cause, and theirs the consequence.
        failed = [c.member for c in calls if c.member in failures]
        dead = [name for name in failed if is_death(failures[name])]
        culprit = dead[0] if dead else failed[0]
        failure = failures[culprit]
        what, reason = headline(str(culprit), failure), cause(failure)
        # A replacement that cannot start is lost, whatever its reason.
        if is_loss(failure) or phase == "start":
            return self._loss(culprit, what, reason, phase)
        return self._report(culprit, what, reason, phase)

    def _loss(self, member: MemberName, what: str, reason: str, phase: str) -> RunFailed:
        """`MemberLost` if the run goes on without the worker, else the failure that ends it."""
        if member in self._lost:
            return MemberLost(self._lost[member])
        if self._keeper is None or not self._keeper.replaces(member):
            return self._report(member, what, reason, phase)
        lost = Lost(member=member, what=what, reason=reason, phase=phase, step=self._step)
        if words := self._keeper.lose(lost):
            return self._report(member, what, f"{reason}. The run cannot go on: {words}", phase)
        self._lost[member] = lost
        self._members.pop(member, None)
        return MemberLost(lost)

    def _failures_of(self, calls: Sequence[Call]) -> dict[MemberName, RayError]:
        failures: dict[MemberName, RayError] = {}
        deadline = time.monotonic() + _ROOT_CAUSE_WAIT_S
        pending = CallSet(calls)
        while len(pending) and (done := pending.take_done(deadline - time.monotonic())):
            for call, future in done:
                if error := error_of(future):
                    failures.setdefault(call.member, error)
        return failures

    def _late(
        self, calls: Sequence[Call], phase: str, timeout_s: float, *, may_lose: bool = False
    ) -> RunFailed:
        """The failure of a wait. With `may_lose`, a worker that is too late counts as lost."""
        late = sorted({unfinished_of(call).member for call in calls}, key=str)
        names = ", ".join(str(name) for name in late[:_MAX_NAMES])
        if len(late) > _MAX_NAMES:
            names += f" and {len(late) - _MAX_NAMES} more"
        setting = _DEADLINES.get(phase, phase)
        reason = f"the deadline is deadlines.{setting}_s"
        limit = self._limits.get(f"{setting}_s", timeout_s)
        if timeout_s < limit - _ROUNDING_S:
            # Of a whole batch, when this wait is for one of its parts.
            reason += f"={limit:g}, of which {limit - timeout_s:.0f} s had passed before"
        what = f"{names} did not answer in {timeout_s:.3g} s"
        if may_lose and self._keeper is not None and all(map(self._keeper.replaces, late)):
            # One after the other: whoever waits for the rest finds the next.
            return self._loss(late[0], what, reason, phase)
        return self._report(late[0], what, reason, phase)

    def _report(self, culprit: MemberName, what: str, reason: str, phase: str) -> RunFailed:
        workers = {name: member.info for name, member in self._members.items()}
        where = f"(phase {phase}, step {self._step})"
        return ToldFailure(failure_report(workers, culprit, f"{what} {where}: {reason}", where))
