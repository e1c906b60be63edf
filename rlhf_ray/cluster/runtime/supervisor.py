"""Waiting for actors with a deadline, and saying who failed, where and why."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.runtime.deaths import cause, headline, is_death
from rlhf_ray.cluster.runtime.diagnose import dump_stacks, on_node, tail_log
from rlhf_ray.cluster.runtime.nodes import lost_nodes, lost_words
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.config.errors import RunFailed

# After a first failure, how long others get to show that they failed first: a rank whose
# peer was killed reports a lost connection before Ray reports the death.
_ROOT_CAUSE_WAIT_S = 3.0
_TAIL_LINES = 25
# For the stacks of all workers: hundreds of engines take a second each, a lost node 20.
_REPORT_S = 30.0
# Of a result whose call is done: it is small, but its node may have gone since.
_FETCH_S = 60.0
_ROUNDING_S = 0.5
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
        pending = {call.signal: call for call in calls}
        values: dict[Any, Any] = {}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._late(list(pending.values()), phase, timeout_s)
            for signal in ready:
                values[signal] = self._fetch(pending.pop(signal), list(pending.values()), phase)
        return [values[call.signal] for call in calls]

    def some_done(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Call]:
        """The finished ones of the calls: at least one, as soon as there is one.

        Raises:
            RunFailed: none was done in time.
        """
        by_signal = {call.signal: call for call in calls}
        ready, _ = ray.wait(list(by_signal), timeout=timeout_s)
        if not ready:
            raise self._late(calls, phase, timeout_s)
        pending = [signal for signal in by_signal if signal != ready[0]]
        if pending:
            more, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
            ready += more
        return [by_signal[signal] for signal in ready]

    def stream(self, call: Call, *, phase: str, timeout_s: float) -> Iterator[Any]:
        """References to what a generator method yields; each in time, none fetched.

        The method yields a small signal before every item: the signal is fetched, so that an
        error is that of the source and not of whoever consumes the item.

        Raises:
            RunFailed: the worker died, failed, or an item was not there in time.
        """
        while (signal := self._next_of(call, phase, timeout_s)) is not None:
            self._fetch(Call(member=call.member, signal=signal, payload=None), [], phase)
            yield self._next_of(call, phase, timeout_s)

    def _next_of(self, call: Call, phase: str, timeout_s: float) -> Any | None:
        ready, _ = ray.wait([call.signal], timeout=timeout_s, fetch_local=False)
        if not ready:
            raise self._late([call], phase, timeout_s)
        return next(call.signal, None)

    def _fetch(self, call: Call, pending: Sequence[Call], phase: str) -> Any:
        try:
            return ray.get(call.signal, timeout=_FETCH_S)
        except RayError as error:
            raise self._failed(call, error, pending, phase) from None

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
        pending = {call.signal: call for call in calls}
        while pending:
            ready, _ = ray.wait(list(pending), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for signal in ready:
                call = pending.pop(signal)
                try:
                    ray.get(signal, timeout=_FETCH_S)
                except RayError as error:
                    failures.setdefault(call.member, error)
        return failures

    def _late(self, calls: Sequence[Call], phase: str, timeout_s: float) -> RunFailed:
        late = sorted({_unfinished(call).member for call in calls}, key=str)
        names = ", ".join(str(name) for name in late)
        setting = _DEADLINES.get(phase, phase)
        reason = f"the deadline is deadlines.{setting}_s"
        limit = self._limits.get(f"{setting}_s", timeout_s)
        if timeout_s < limit - _ROUNDING_S:
            # Of a whole batch, when this wait is for one of its parts.
            reason += f"={limit:g}, of which {limit - timeout_s:.0f} s had passed before"
        return self._report(late[0], f"{names} did not answer in {timeout_s:.3g} s", reason, phase)

    def _report(self, culprit: MemberName, what: str, reason: str, phase: str) -> RunFailed:
        where = f"(phase {phase}, step {self._step})"
        workers: dict[str, list[str]] = {}
        for member in self._members.values():
            workers.setdefault(member.info.node_id, []).append(str(member.name))
        lost = lost_nodes(workers)
        parts = [f"{what} {where}: {reason}"]
        if lost:
            # Whoever failed first needed something of it.
            event, cause_of_loss = lost_words(lost, workers)
            parts = [f"{event} {where}: {cause_of_loss}", f"--- seen as: {parts[0]}"]
        gone = {node.node_id: f"on the lost node {node.name}" for node in lost}
        deadline = time.monotonic() + _REPORT_S
        if culprit in self._members and self._members[culprit].info.node_id not in gone:
            tail = self._ask(self._members[culprit], tail_log, _TAIL_LINES)
            parts.append(f"--- end of the log of {culprit}:\n{tail or '(empty)'}")
        for member in self._members.values():
            if time.monotonic() > deadline:
                parts.append(f"--- no stacks from {member.name} on: there was no time to ask more")
                break
            stacks = gone.get(member.info.node_id) or self._ask(member, dump_stacks)
            parts.append(f"--- stacks of {member.name}:\n{stacks}")
        return RunFailed("\n".join(parts))

    def _ask(self, member: Member, function: Any, *arguments: Any) -> str:
        try:
            return on_node(member.info.node_id, function, member.info, *arguments)
        except (RayError, OSError) as error:
            return f"not to be had: {type(error).__name__}: {error}"


def _chain(call: Call) -> list[Call]:
    """The calls that a call waits for and itself, the first one first."""
    return [*(_chain(call.before) if call.before else []), call]


def _unfinished(call: Call) -> Call:
    """The call that a late call waits for: the first unfinished one of its chain, or itself."""
    for earlier in _chain(call)[:-1]:
        if not ray.wait([earlier.signal], timeout=0)[0]:
            return earlier
    return call
