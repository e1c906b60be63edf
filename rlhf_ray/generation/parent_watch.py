"""A process that does not outlive the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading


def end_with_parent() -> None:
    """End this process at once when the process that started it has ended, however that was.

    For children of `multiprocessing`; others have no parent to watch and go on.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end_with_parent", daemon=True).start()


def end_group_with_stdin() -> None:
    """Kill this process and all that it has started when its standard input ends.

    For a process with a group of its own whose standard input is a pipe that nobody writes to:
    the pipe ends with the process at its other end, however that ended. Others go on.
    """
    if os.getpgrp() != os.getpid():
        return  # Started by hand: the group is that of a shell.

    def wait() -> None:
        sys.stdin.buffer.read()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="end_group_with_stdin", daemon=True).start()
