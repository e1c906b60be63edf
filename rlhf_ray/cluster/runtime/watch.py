"""The watch over Ray's own processes, and over the end of the run.

The deadlines of workers are kept by calls of Ray (`Supervisor`), which need Ray's raylet and GCS.
If one of those hangs or is gone, a call may never return, or Ray's C++ ends this process without a
word. So a thread looks at them that makes no call of Ray. It also hears of a signal while the main
thread is inside such a call, and ends the process if the main thread cannot.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Self

from rlhf_ray.cluster.runtime.ray_processes import KILLED, GcsProbe, RayProcess
from rlhf_ray.interrupts import EndOnSignal, Interrupted

_POLL_S = 0.5
# How long the main thread may take to leave, after a signal or a failure of Ray. Slurm waits 30 s
# between SIGTERM and SIGKILL. Workers end in 5 s, Ray in 4 s.
_LEAVE_S = 20.0
# The same when Ray's processes have got the signal, too (systemd, Slurm): nothing answers then.
_LEAVE_WITHOUT_RAY_S = 3.0
# The watch makes the main thread raise by this signal, which interrupts its waits.
_RAISE = signal.SIGUSR2
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


class Watch:
    """The thread; a context manager of the main thread.

    Args:
        silence_s: how long a process of Ray may be stopped or silent.
        handler: says what is to be said.
        error_log: file for the failure, if the main thread cannot write it.
        on_forced_end: called before the process ends itself.
        tend: called about twice a second.
    """

    def __init__(
        self,
        *,
        silence_s: float,
        handler: EndOnSignal,
        error_log: Path,
        on_forced_end: Callable[[], None],
        tend: Callable[[], None] = lambda: None,
    ) -> None:
        self.fault: str | None = None
        self._silence_s = silence_s
        self._handler = handler
        self._error_log = error_log
        self._on_forced_end = on_forced_end
        self._tend = tend
        self._processes: tuple[RayProcess, ...] = ()
        self._probe: GcsProbe | None = None
        self._logs = ""
        self._stopped_since: dict[str, float] = {}
        self._limit: tuple[str, float, float] | None = None
        # Words and status of a forced end, and its time, once the run is to end.
        self._ending: tuple[str, int, float] | None = None
        self._signals, self._wakeup = os.pipe()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._signals, False)
        # Written by the interpreter's handler in C, so also while the main thread is in a library.
        self._fd_before = signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        # A fork would write its own signals there.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        self._before = signal.signal(_RAISE, self._raise_fault)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._thread.join()
        self.look_away()
        signal.signal(_RAISE, self._before)
        signal.set_wakeup_fd(self._fd_before)
        os.close(self._signals)
        os.close(self._wakeup)

    def look_at(self, processes: Sequence[RayProcess], probe: GcsProbe, *, logs: str) -> None:
        """Watch these from now on.

        Args:
            logs: folder of their logs.
        """
        self._logs = logs
        self._probe, self._processes = probe, tuple(processes)

    def find_lost(self) -> str | None:
        """Name the process of Ray that is gone; a worker that fails may show it first."""
        ends = [(process, end) for process in self._processes if (end := process.end())]
        # Agents end with a raylet that was killed, and a raylet ends itself when an agent is gone.
        killed = [found for found in ends if found[1] == KILLED]
        if not ends:
            return None
        process, end = (killed or ends)[0]
        # Between two looks the loss of one may have ended another; nothing tells which was first.
        others = "" if killed else ", ".join(str(other) for other, _ in ends[1:])
        return (
            f"Ray's {process} on this node {end}{others and f' (as is {others})'}, and no worker "
            f"can run without it. If neither you nor the kernel (out of memory, see dmesg) killed "
            f"it, see its log in {self._logs}"
        )

    def look_away(self) -> None:
        """Watch nothing: Ray is being shut down."""
        self._processes = ()
        if self._probe:
            self._probe.close()
        self._probe = None

    @contextmanager
    def limited(self, title: str, seconds: float) -> Iterator[None]:
        """A time limit for calls of Ray that have none."""
        self._limit = (title, seconds, time.monotonic() + seconds)
        try:
            yield
        finally:
            self._limit = None

    def _run(self) -> None:
        while not self._quit.is_set():
            readable, _, _ = select.select([self._signals], [], [], _POLL_S)
            self._tend()
            # In this order: a signal to all processes of a job ends Ray's, too, and the signal is
            # then the cause.
            fault = None if self._ending else self._find_fault()
            if readable or fault:
                self._hear_signals()
            if fault and not self._ending:
                self._end_by(fault)
            if self._ending and time.monotonic() > self._last_moment() and not self._quit.is_set():
                self._force_end(*self._ending[:2])

    def _last_moment(self) -> float:
        assert self._ending is not None
        words, status, latest = self._ending
        if any(process.end() for process in self._processes):
            latest = min(latest, time.monotonic() + _LEAVE_WITHOUT_RAY_S)
            self._ending = (words, status, latest)
        return latest

    def _hear_signals(self) -> None:
        try:
            numbers = os.read(self._signals, 64)
        except BlockingIOError:
            return
        ending = [number for number in numbers if number in _ENDING]
        # A stage that ends in order at a signal (`serve`) has its own handler.
        if ending and not self._ending and self._is_ours(ending[0]):
            interrupted = Interrupted(ending[0])
            words = f"ended by {interrupted.title}"
            self._ending = (words, 128 + ending[0], time.monotonic() + _LEAVE_S)

    def _is_ours(self, number: int) -> bool:
        handler = signal.getsignal(number)
        return isinstance(handler, EndOnSignal) or handler is signal.default_int_handler

    def _end_by(self, fault: str) -> None:
        self.fault = fault
        self._ending = (f"failed: {fault}", 1, time.monotonic() + _LEAVE_S)
        signal.pthread_kill(threading.main_thread().ident or 0, _RAISE)

    def _raise_fault(self, _number: int, _frame: FrameType | None) -> None:
        # A call of Ray passes this one on as it is. `connected` raises the fault in its place.
        raise KeyboardInterrupt

    def _find_fault(self) -> str | None:
        now = time.monotonic()
        if lost := self.find_lost():
            return lost
        for process in self._processes:
            name = str(process)
            if not process.is_stopped():
                self._stopped_since.pop(name, None)
            elif now - self._stopped_since.setdefault(name, now) > self._silence_s:
                return (
                    f"Ray's {name} on this node has been stopped (SIGSTOP) for longer than "
                    f"deadlines.ray_s={self._silence_s:g} s"
                )
        return self._silence(now)

    def _silence(self, now: float) -> str | None:
        if not self._stopped_since and self._probe and self._probe.silent_s() > self._silence_s:
            return (
                f"Ray's GCS at {self._probe.address} has not answered for longer than "
                f"deadlines.ray_s={self._silence_s:g} s: it hangs or is gone, or the "
                f"network is cut"
            )
        limit = self._limit
        if limit and now > limit[2]:
            return f"{limit[0]} took longer than {limit[1]:g} s"
        return None

    def _force_end(self, words: str, status: int) -> None:
        """End the process from this thread: the main thread is in a call that does not return."""
        self._handler.say(words)
        if status == 1:
            try:
                self._error_log.parent.mkdir(parents=True, exist_ok=True)
                self._error_log.write_text(f"{words}\n", encoding="utf-8")
            except OSError as error:
                self._handler.say(f"{self._error_log} cannot be written: {error}")
        self._on_forced_end()
        os._exit(status)
