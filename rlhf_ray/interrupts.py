"""The end of the command by a signal: one word on the screen, an exception, an exit status.

Standard library only, because the command installs the handler before its other imports.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

EXIT_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
# Name of a thread whose call never returned; see `leave`.
ABANDONED = "abandoned"


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

    Attributes:
        interrupted: what it has raised. A call of Ray turns it into a SystemExit of status 1.
    """

    def __init__(self) -> None:
        try:
            self._screen = os.dup(2)
        except OSError:  # Closed by whoever started the command.
            self._screen = os.open(os.devnull, os.O_WRONLY)
        self._pid = os.getpid()
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
        if self.interrupted:
            return
        self.interrupted = Interrupted(number)
        # While `ray.init` runs, Ray's handler in C++ comes first, and sets an alarm of three
        # seconds that aborts the process.
        signal.alarm(0)
        self.say(f"{self.interrupted.title}: ending the run")
        raise self.interrupted

    def say(self, text: str) -> None:
        """Write a line of the command to the screen, from any thread."""
        line = f"rlhf_ray: {text}\n".encode(errors="replace")
        while line:
            try:
                line = line[os.write(self._screen, line) :]
            except OSError:  # A closed terminal: there is no one to tell.
                return


def current_handler() -> EndOnSignal:
    """The handler of SIGTERM that the command installed, or a new one."""
    handler = signal.getsignal(signal.SIGTERM)
    return handler if isinstance(handler, EndOnSignal) else EndOnSignal()


def give_ctrl_c_back() -> None:
    """Let SIGINT raise KeyboardInterrupt again, as it did before `EndOnSignal.install`."""
    if isinstance(signal.getsignal(signal.SIGINT), EndOnSignal):
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(status: int) -> NoReturn:
    """End this process; at once where a thread is in a call that never returns.

    The usual end of Python runs the exit functions of libraries, which would wait for that call.
    """
    if any(thread.name == ABANDONED for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
