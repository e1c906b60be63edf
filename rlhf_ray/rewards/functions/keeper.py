"""The processes around the one that runs reward functions: guard and keeper.

    python -m rlhf_ray.rewards.functions.keeper CONTROL CHANNEL

The keeper starts the process of the functions (`runner.py`) and is a subreaper: a process whose
parent has ended becomes a child of the keeper and not of process 1, however often it has forked.
So the keeper can end all that the functions have left behind: at the end of a call, and before it
ends. It ends when the worker says so or is gone (its socket closes then, also if it was killed),
when the process of the functions has ended, or when its family breaks a limit.

The guard is the keeper's parent and waits. Ray kills the direct children of a worker that it ends;
a keeper that is killed could end nothing more. If the keeper is killed all the same, the guard, a
subreaper too, gets its descendants, and ends them.

Messages in: the settings, then `SETTLE` at the end of every call. Messages out, JSON: the number
of processes ended by each `SETTLE`; at last a report of how the process of the functions ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys
import time

from rlhf_ray.rewards.functions.channel import Channel
from rlhf_ray.rewards.functions.family import children, family
from rlhf_ray.rewards.functions.limits import FunctionLimits

SETTLE = b"settle"
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOOK_EVERY_S = 0.25
_POLL_S = 0.002
# Shorter than the worker waits for the keeper.
_END_TIMEOUT_S = 25.0
_ENDED_AT_ONCE = 100
# bubblewrap's own: one outside of the sandbox, and process 1 inside of it.
_SANDBOX_PROCESSES = 2


def main() -> None:
    control, channel = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    for end in (control, channel):
        os.set_inheritable(end.fileno(), False)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    keeper = os.fork()
    if keeper:
        control.close()
        channel.close()
        status = os.waitpid(keeper, 0)[1]
        _end_descendants()
        sys.exit(os.waitstatus_to_exitcode(status))
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    orders = Channel(control)
    settings = json.loads(orders.receive())
    limits = FunctionLimits(**settings["limits"])
    me = os.getpid()
    functions = os.fork()
    if not functions:
        control.close()
        _die_with_parent(me)
        _run(channel, limits, settings["command"])
        return
    channel.close()
    # Above processes that fork without end; root alone may.
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    _Keeper(orders, limits, functions=functions, sandboxed=settings["command"] is not None).keep()


def _run(channel: socket.socket, limits: FunctionLimits, command: list[str] | None) -> None:
    """Become the process of the functions, inside of a sandbox if there is a command for it."""
    limits.apply()
    if command is not None:
        os.set_inheritable(channel.fileno(), True)
        os.execv(command[0], [*command, str(channel.fileno())])
    # Imported here, so that the keeper stays small.
    from rlhf_ray.rewards.functions.runner import serve

    serve(channel, limits)


class _Keeper:
    """Watch over one process of functions and all of its descendants."""

    def __init__(
        self, orders: Channel, limits: FunctionLimits, *, functions: int, sandboxed: bool
    ) -> None:
        self._orders = orders
        self._limits = limits
        self._functions = functions
        self._sandboxed = sandboxed
        self._status: int | None = None
        self._wake, write = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def keep(self) -> None:
        """Wait for the end, report it, and end all.

        The report has `status`, the wait status of the functions' process or None if it had not
        ended, and `limit`, a sentence or None.
        """
        broken: str | None = None
        self._reap()
        while self._status is None and broken is None:
            # `poll`, because descriptors may be above select's 1024.
            ready = self._poll(_LOOK_EVERY_S)
            self._reap()
            if self._orders.fileno() in ready and not self._obey():
                break
            broken = self._limits.broken_by(self._counted())
        report = {"status": self._status, "limit": broken}
        # First, because the worker waits for it; the end of many processes takes its time.
        with contextlib.suppress(ConnectionError, TimeoutError):
            self._orders.send(json.dumps(report).encode(), timeout_s=1.0)
        if left := self._end_all():
            print(f"{left} processes of the reward functions cannot be ended", file=sys.stderr)

    def _poll(self, timeout_s: float) -> set[int]:
        poll = select.poll()
        for descriptor in (self._wake, self._orders.fileno()):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(timeout_s * 1000)}
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        return ready

    def _obey(self) -> bool:
        """Carry out an order; False if the worker is gone or done."""
        try:
            self._orders.receive(timeout_s=1.0)
            ended = self._end_orphans()
            self._orders.send(json.dumps({"ended": ended}).encode(), timeout_s=1.0)
        except (EOFError, ConnectionError, TimeoutError):
            return False
        return True

    def _reap(self) -> bool:
        """Take the statuses of children that have ended; False if there are no children."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self._functions:
                self._status = status

    def _counted(self) -> list[int]:
        others = 1 + (_SANDBOX_PROCESSES if self._sandboxed else 0)
        most = self._limits.processes
        enough = None if most is None else others + most + 1
        return family(os.getpid(), enough=enough)[others:]

    def _orphans(self) -> list[int]:
        """Processes whose parent has ended, with their descendants."""
        heir, own = os.getpid(), self._functions
        if self._sandboxed:
            # Inside, process 1 inherits them: bubblewrap's, whose first child runs the functions.
            inside = children(self._functions)
            if not inside:
                return []
            heir, own = inside[0], next(iter(children(inside[0])), 0)
        left = [child for child in children(heir) if child != own]
        return [member for orphan in left for member in family(orphan)]

    def _end_orphans(self) -> int:
        ended: set[int] = set()
        deadline = time.monotonic() + _END_TIMEOUT_S
        while (orphans := self._orphans()) and time.monotonic() < deadline:
            ended |= set(orphans)
            _kill(orphans)
            time.sleep(_POLL_S)
            self._reap()
        return len(ended)

    def _end_all(self) -> int:
        """End all descendants. The number of those that are left, because they are not ours."""
        deadline = time.monotonic() + _END_TIMEOUT_S
        if self._sandboxed:
            # Process 1 of the sandbox: the kernel ends all others with it, and none can be born.
            _kill(children(self._functions))
        # As they end, their children become the keeper's: none is left when it has no child.
        while self._reap():
            # Parents first and some at a time, because they may fork while they are listed.
            members = family(os.getpid(), enough=_ENDED_AT_ONCE)[1:]
            if time.monotonic() > deadline:
                return len(members)
            _kill(members)
            self._poll(_POLL_S)
        return 0


def _end_descendants() -> None:
    """End all descendants of this process; none are left of a keeper that has done its work."""
    deadline = time.monotonic() + _END_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        _kill(family(os.getpid(), enough=_ENDED_AT_ONCE)[1:])
        time.sleep(_POLL_S)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        # Ended already, or another user's (a program with the set-user-id bit).
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the keeper ends, whatever it is doing."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A parent that ended before the call above sends no signal.
    if os.getppid() != parent:
        sys.exit("the keeper of the reward functions ended before their process was up")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


if __name__ == "__main__":
    main()
