"""End of a process together with its parent, however the parent ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """End this process as soon as its parent process has ended.

    For children of `multiprocessing`; does nothing in other processes.
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

    For a process that leads its own group and has a pipe as standard input that is never written
    to: the pipe closes when the process at its other end ends. Does nothing in other processes.
    """
    if os.getpgrp() != os.getpid():
        return  # Started by hand: the group belongs to a shell.

    def wait() -> None:
        # Not through `sys.stdin`: Python waits for its lock when it ends, and aborts the process.
        while os.read(0, 1):
            pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="end_group_with_stdin", daemon=True).start()
