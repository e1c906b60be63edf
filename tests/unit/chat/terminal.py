"""Run of a command in its own terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
CTRL_C, CTRL_D = "\x03", "\x04"
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command in its own terminal: types text, and waits for output."""

    def __init__(self, command: list[str]) -> None:
        self.seen = ""
        self._screen, side = pty.openpty()
        self.process = subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            cwd=REPOSITORY,
            # A separate session, so that the terminal sends it Ctrl-C as a signal.
            preexec_fn=_control_terminal,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
            close_fds=True,
        )
        os.close(side)

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def expect(self, text: str, timeout_s: float = 60) -> None:
        """Wait for a text; the output up to its end is consumed."""
        deadline = time.monotonic() + timeout_s
        while text not in self.seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self.seen[-2000:]!r}"
            ready, _, _ = select.select([self._screen], [], [], 0.1)
            if ready:
                self.seen = _ESCAPES.sub("", self.seen + self._read())
        self.seen = self.seen.partition(text)[2]

    def _read(self) -> str:
        try:
            return os.read(self._screen, 65536).decode(errors="replace")
        except OSError as error:
            raise AssertionError(f"it has ended after {self.seen[-2000:]!r}") from error

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=10)
        os.close(self._screen)


def _control_terminal() -> None:
    """Make the terminal at standard input the controlling one; runs in the child."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
