"""The end of the command by a signal: one word on the screen, an exception, an exit status.

Standard library only, because the command installs the handler before its other imports.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NoReturn

from rlhf_ray.unread_output import fill_closed_descriptors

EXIT_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Name of a thread whose call never returned; see `leave`.
ABANDONED = "abandoned"
# An orderly end takes less.
_END_S = 30.0
_EXIT_NOT_FLUSHED = 120


class Interrupted(SystemExit):
    """A signal has ended the run; the exit status is 128 and its number, as in a shell."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    @property
    def title(self) -> str:
        """Name of the signal, such as SIGTERM."""
        return signal.Signals(self.number).name


class EndOnSignal:
    """Handler that raises `Interrupted` in the main thread, once.

    It keeps the standard error of its first moment: a run sends descriptor 2 to a file.

    Args:
        at_once: end the process instead. While modules are imported there is nothing to end in
            order, and a library may take the exception for a failed import.

    Attributes:
        interrupted: what it has raised. A call of Ray turns it into a SystemExit of status 1.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        try:
            self._screen = os.dup(2)
        except OSError:  # Closed by whoever started the command.
            self._screen = os.open(os.devnull, os.O_WRONLY)
        self.at_once = at_once
        self._pid = os.getpid()
        self._raised_at = -math.inf
        self.interrupted: Interrupted | None = None

    def install(self, *numbers: signal.Signals) -> None:
        """Handle these signals; those that are ignored (`nohup`, a job in the background) stay so.

        Args:
            numbers: SIGTERM and SIGHUP if there are none.
        """
        for number in numbers or EXIT_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # A fork, such as a worker of a pool: it ends as it would.
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
            return
        # A second signal must not cut the orderly end short, and `timeout` and Slurm send several.
        # A later one gets through: a library may have caught the first.
        if time.monotonic() - self._raised_at < _END_S:
            return
        self.interrupted, self._raised_at = Interrupted(number), time.monotonic()
        # While `ray.init` runs, Ray's handler in C++ comes first, and sets an alarm of three
        # seconds that aborts the process.
        signal.alarm(0)
        self.say(f"{self.interrupted.title}: ending the run")
        if self.at_once:
            os._exit(128 + number)
        raise self.interrupted

    def say(self, text: str) -> None:
        """Write a line of the command to the screen, from any thread."""
        line = f"rlhf_ray: {text}\n".encode(errors="replace")
        while line:
            try:
                line = line[os.write(self._screen, line) :]
            except OSError:  # A closed terminal: there is no one to tell.
                return


class CtrlC:
    """Python's own handler of Ctrl-C, which also remembers it.

    A library may make another error of a KeyboardInterrupt, such as one of its import.
    """

    def __init__(self) -> None:
        self.has_come = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.has_come = True
        signal.default_int_handler(number, frame)


def current_handler() -> EndOnSignal:
    """The handler of SIGTERM that the command installed, or a new one."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, EndOnSignal) else EndOnSignal()


def begin_process() -> None:
    """Take a process over that is to be the command; to be called before other imports."""
    fill_closed_descriptors()
    EndOnSignal(at_once=True).install(*EXIT_SIGNALS, signal.SIGINT)


def begin_command() -> None:
    """Raise at a signal from now on, where the handler is installed; Ctrl-C as Python does."""
    handler = signal.getsignal(signal.SIGTERM)
    if isinstance(handler, EndOnSignal):
        handler.at_once = False
    if isinstance(signal.getsignal(signal.SIGINT), EndOnSignal):
        signal.signal(signal.SIGINT, CtrlC())


def interruption() -> Interrupted | None:
    """The signal that has come: an error may be what a library has made of it."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler.interrupted if isinstance(handler, EndOnSignal) else None


def is_interrupted() -> bool:
    """Whether Ctrl-C or a signal has come; see `interruption`."""
    handler = signal.getsignal(signal.SIGINT)
    return interruption() is not None or (isinstance(handler, CtrlC) and handler.has_come)


def dismiss_interruption() -> None:
    """The signal came when the end was decided already, and changes nothing of it."""
    if isinstance(end := signal.getsignal(signal.SIGTERM), EndOnSignal):
        end.interrupted = None
    if isinstance(ctrl_c := signal.getsignal(signal.SIGINT), CtrlC):
        ctrl_c.has_come = False


def leave(status: int) -> NoReturn:
    """End this process with its exit functions, and without taking the interpreter apart.

    Libraries in C++ have threads of their own; taken apart under them, a process whose Ray was
    stopped in mid-start crashes now and then (SIGSEGV, after its last line), and its status is
    lost. Where a thread is in a call that never returns, the exit functions of libraries would
    wait for it: they are left out.
    """
    try:
        if not any(thread.name == ABANDONED for thread in threading.enumerate()):
            # What the interpreter does first at its end, and `multiprocessing` in its processes.
            # A signal ends the wait, and nothing else: the status is known.
            with contextlib.suppress(BaseException):
                threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
            with contextlib.suppress(BaseException):
                atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # Closed by whoever started the command.
                stream.flush()
    except OSError:  # Nobody reads on, or the disk is full: Python's own status for that.
        status = status or _EXIT_NOT_FLUSHED
    finally:
        os._exit(status)
