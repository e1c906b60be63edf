"""Waiting for actors with a deadline, and saying who failed, where and why."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.deaths import cause, headline, is_death
from rlhf_ray.cluster.runtime.failure_stacks import worker_report
from rlhf_ray.cluster.runtime.nodes import lost_nodes, lost_words
from rlhf_ray.cluster.runtime.pending import CallSet, Done
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.config.errors import RunFailed

# After a first failure, how long others get to show that they failed first: a rank whose
# peer was killed reports a lost connection before Ray reports the death.
_ROOT_CAUSE_WAIT_S = 3.0
# Of late workers, in a message.
_MAX_NAMES = 8
_ROUNDING_S = 0.5
# How often work is done during a wait; see `Supervisor.meanwhile`.
_WORK_EVERY_S = 0.1
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

    def add(self, member: Member) -> None:
        self._members[member.name] = member

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
        deadline = time.monotonic() + timeout_s
        pending = CallSet(calls)
        values: dict[Call, Any] = {}
        while len(pending):
            done = self._some_done(pending, deadline)
            if not done:
                raise self._late(pending.calls, phase, timeout_s)
            for call, future in done:
                if error := _error(future):
                    others = [c for c in calls if c is not call and c not in values]
                    raise self._failed(call, error, others, phase)
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

    def _some_done(self, pending: CallSet, deadline: float) -> list[Done]:
        """Take the finished calls out of a set, as `CallSet.take_done`, and work meanwhile."""
        while True:
            left_s = deadline - time.monotonic()
            if self._work is None:
                return pending.take_done(left_s)
            self._work()
            done = pending.take_done(min(left_s, _WORK_EVERY_S))
            if done or left_s <= _WORK_EVERY_S:
                return done

    def pending(self) -> SupervisedCalls:
        """A set of calls, empty at first."""
        return SupervisedCalls(self)

    def take_done(
        self, pending: CallSet, *, phase: str, timeout_s: float
    ) -> list[tuple[Call, Any]]:
        """Take the finished calls out of a set: at least one, as soon as there is one.

        Raises:
            RunFailed: one has failed, or none was done in time.
        """
        done = pending.take_done(timeout_s)
        if not done:
            raise self._late(pending.calls, phase, timeout_s)
        return self._values(done, phase)

    def take_ready(self, pending: CallSet, *, phase: str) -> list[tuple[Call, Any]]:
        """Take the calls that are done by now out of a set.

        Raises:
            RunFailed: one has failed.
        """
        return self._values(pending.take_done(0.0), phase)

    def _values(self, done: Sequence[Done], phase: str) -> list[tuple[Call, Any]]:
        for call, future in done:
            if error := _error(future):
                # The cause is this call or one before it: the others are requests of their own.
                raise self._failed(call, error, [], phase)
        return [(call, future.result()) for call, future in done]

    def stream(self, call: Call, *, phase: str, timeout_s: float) -> Iterator[Any]:
        """References to what a generator method yields; each in time, none fetched.

        The method yields a small signal before every item: the signal is fetched, so that an
        error is that of the source and not of whoever consumes the item.

        Raises:
            RunFailed: the worker died, failed, or an item was not there in time.
        """
        while (signal := self._next_of(call, phase, timeout_s)) is not None:
            item = Call(member=call.member, signal=signal, payload=None)
            self.results([item], phase=phase, timeout_s=timeout_s)
            yield self._next_of(call, phase, timeout_s)

    def _next_of(self, call: Call, phase: str, timeout_s: float) -> Any | None:
        ready, _ = ray.wait([call.signal], timeout=timeout_s, fetch_local=False)
        if not ready:
            raise self._late([call], phase, timeout_s)
        return next(call.signal, None)

    def _failed(
        self, call: Call, error: RayError, pending: Sequence[Call], phase: str
    ) -> RunFailed:
        """The failure of a call, or the death of another worker that led to it."""
        calls = [earlier for last in (call, *pending) for earlier in _chain(last)]
        failures = {call.member: error, **self._failures_of([c for c in calls if c is not call])}
        # What others waited for comes first: it is the cause, and theirs the consequence.
        failed = [c.member for c in calls if c.member in failures]
        dead = [name for name in failed if is_death(failures[name])]
        culprit = dead[0] if dead else failed[0]
        failure = failures[culprit]
        return self._report(culprit, headline(str(culprit), failure), cause(failure), phase)

    def _failures_of(self, calls: Sequence[Call]) -> dict[MemberName, RayError]:
        failures: dict[MemberName, RayError] = {}
        deadline = time.monotonic() + _ROOT_CAUSE_WAIT_S
        pending = CallSet(calls)
        while len(pending) and (done := pending.take_done(deadline - time.monotonic())):
            for call, future in done:
                if error := _error(future):
                    failures.setdefault(call.member, error)
        return failures

    def _late(self, calls: Sequence[Call], phase: str, timeout_s: float) -> RunFailed:
        late = sorted({_unfinished(call).member for call in calls}, key=str)
        names = ", ".join(str(name) for name in late[:_MAX_NAMES])
        if len(late) > _MAX_NAMES:
            names += f" and {len(late) - _MAX_NAMES} more"
        setting = _DEADLINES.get(phase, phase)
        reason = f"the deadline is deadlines.{setting}_s"
        limit = self._limits.get(f"{setting}_s", timeout_s)
        if timeout_s < limit - _ROUNDING_S:
            # Of a whole batch, when this wait is for one of its parts.
            reason += f"={limit:g}, of which {limit - timeout_s:.0f} s had passed before"
        return self._report(late[0], f"{names} did not answer in {timeout_s:.3g} s", reason, phase)

    def _report(self, culprit: MemberName, what: str, reason: str, phase: str) -> RunFailed:
        parts = [f"{what} (phase {phase}, step {self._step}): {reason}"]
        workers = {name: member.info for name, member in self._members.items()}
        on_node: dict[str, list[str]] = {}
        for name, info in workers.items():
            on_node.setdefault(info.node_id, []).append(str(name))
        lost = lost_nodes(on_node)
        if lost:
            # Whoever failed first needed something of it.
            event, cause_of_loss = lost_words(lost, on_node)
            where = f"(phase {phase}, step {self._step})"
            parts = [f"{event} {where}: {cause_of_loss}", f"--- seen as: {parts[0]}"]
        gone = {node.node_id: f"on the lost node {node.name}" for node in lost}
        return RunFailed("\n".join([*parts, *worker_report(workers, culprit, gone)]))


class SupervisedCalls:
    """The `PendingCalls` of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._calls = CallSet()

    def add(self, call: Call) -> None:
        self._calls.add(call)

    def discard(self, call: Call) -> None:
        self._calls.discard(call)

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        """See `calls.PendingCalls`."""
        return self._supervisor.take_done(self._calls, phase=phase, timeout_s=timeout_s)

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        """See `calls.PendingCalls`."""
        return self._supervisor.take_ready(self._calls, phase=phase)


def _error(future: Future[Any]) -> RayError | None:
    """The failure of a finished call, if it has failed."""
    error = future.exception()
    if error is not None and not isinstance(error, RayError):
        raise error
    return error


def _chain(call: Call) -> list[Call]:
    """The calls that a call waits for and itself, the first one first."""
    return [*(_chain(call.before) if call.before else []), call]


def _unfinished(call: Call) -> Call:
    """The call that a late call waits for: the first unfinished one of its chain, or itself."""
    for earlier in _chain(call)[:-1]:
        if not ray.wait([earlier.signal], timeout=0)[0]:
            return earlier
    return call
