"""The child process with the reward functions, as the worker holds it: start, calls, kill.

A thread or an alarm cannot stop code that holds the interpreter (a regular expression
that backtracks without end), so the functions run in a child process, which can be killed. It is
a fresh interpreter (`function_runner.py`) rather than a fork: the worker has threads, and its
torch need not be copied.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardFunctionConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.answers import Answer, from_message
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import RewardSample

# Importing a user's module may load torch or a model.
START_TIMEOUT_S = 300.0
_CLOSE_TIMEOUT_S = 2.0
_KILL_TIMEOUT_S = 10.0
_KINDS = {"error": FailureKind.REWARD_ERROR, "not_finite": FailureKind.REWARD_NOT_FINITE}

# One call: position of the sample, position of the function.
Item = tuple[int, int]


class FunctionProcess:
    """A child process with the reward functions, started again whenever it is lost.

    Args:
        timeout_s: limit for one function on one sample.
        start_timeout_s: limit for the start, imports of the functions' modules included.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunctionConfig],
        *,
        timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._functions = tuple(functions)
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Start the process and load the functions.

        Raises:
            RequestError: a function cannot be loaded.
            RuntimeError: the process died or did not start in time.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            # Without a limit, a child that is stopped (SIGSTOP) would block a send, or the rest
            # of a message, for ever.
            _set_timeout(ours, max(self._timeout_s, 1.0))
            arguments = (str(theirs.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(
                # -P: the current folder must not come first in the path; PYTHONPATH has it all.
                [sys.executable, "-u", "-P", "-m", "rlhf_ray.rewards.function_runner", *arguments],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": _python_path()},
                # A separate session: Ctrl-C reaches the driver alone, which ends the run in
                # order, and a kill of the group takes what the functions have started.
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        try:
            self._connection.send_bytes(pickle.dumps(self._functions))
            reply = self._receive(self._start_timeout_s)
        except (TimeoutError, BlockingIOError) as error:
            self.kill()
            raise RuntimeError(
                f"the reward process did not start within {self._start_timeout_s:g} s; move long "
                "work in the reward functions' modules out of the import"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                f"the reward process ended while it started: {self.kill()}; its output is in "
                "this worker's log"
            ) from error
        if "refused" in reply:
            self.kill()
            raise RequestError(reply["refused"])

    def run(
        self, samples: Sequence[RewardSample], items: Sequence[Item]
    ) -> list[Answer | ItemFailure]:
        """Call function after function, in the order of the items.

        Returns:
            A float, `StepRewards` or an `ItemFailure` for each item.

        Raises:
            RuntimeError: the process was lost and could not be started again.
        """
        outcomes: list[Answer | ItemFailure] = []
        # An item that ends the process (time limit, crash) has its outcome by then; a new process
        # goes on with the next one, so that one bad item costs no other.
        while len(outcomes) < len(items):
            if not self._is_running():
                self.kill()
                self.start()
            outcomes += self._run_until_lost(samples, items[len(outcomes) :])
        return outcomes

    def close(self) -> None:
        """Close the connection, at which the process ends by itself; kill it if it does not."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        while self._is_running() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.kill()

    def kill(self) -> str:
        """Kill the process and all that it has started.

        Returns:
            How it ended, in words.
        """
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is None:
            return "it was not running"
        # The process has not been reaped, so its id, which is also its group's, cannot belong to
        # another process yet. A process that is ending already keeps its own exit status.
        os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait(_KILL_TIMEOUT_S)
        self._process = None
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"

    def _is_running(self) -> bool:
        """Whether the process is alive. It is not reaped here: `kill` needs its id."""
        if self._process is None:
            return False
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, options) is None

    def _run_until_lost(
        self, samples: Sequence[RewardSample], items: Sequence[Item]
    ) -> list[Answer | ItemFailure]:
        """Outcomes of the first items: all, or those up to the item that ended the process."""
        assert self._connection is not None
        outcomes: list[Answer | ItemFailure] = []
        try:
            self._connection.send_bytes(pickle.dumps((samples, items)))
            for _ in items:
                outcomes.append(_outcome(self._receive(self._timeout_s)))
        except (TimeoutError, BlockingIOError):
            self.kill()
            outcomes.append(
                ItemFailure(
                    kind=FailureKind.REWARD_TIMEOUT,
                    message=f"it took longer than reward.timeout_s, {self._timeout_s:g} s",
                )
            )
        except (EOFError, ConnectionError):
            outcomes.append(
                ItemFailure(
                    kind=FailureKind.REWARD_WORKER_LOST,
                    message=f"its process ended: {self.kill()}",
                )
            )
        return outcomes

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        assert self._connection is not None
        if not self._connection.poll(timeout_s):
            raise TimeoutError
        return json.loads(self._connection.recv_bytes())


def _outcome(reply: dict[str, Any]) -> Answer | ItemFailure:
    if "failed" in reply:
        return ItemFailure(kind=_KINDS[reply["failed"]], message=reply["message"])
    return from_message(reply)


def _python_path() -> str:
    """Module search path of this process, for a child; "" is the current folder."""
    return os.pathsep.join(entry or os.getcwd() for entry in sys.path)


def _set_timeout(end: socket.socket, timeout_s: float) -> None:
    """Set a time limit in the kernel for each read and write; `Connection` has none."""
    seconds = int(timeout_s)
    value = struct.pack("ll", seconds, int((timeout_s - seconds) * 1e6))
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
