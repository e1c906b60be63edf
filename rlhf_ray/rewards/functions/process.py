"""The process with the reward functions, as the worker holds it: start, calls, end.

A thread or an alarm cannot stop code that holds the interpreter (a regular expression
that backtracks without end), so the functions run in a child process, which can be killed. It is
a fresh interpreter rather than a fork: the worker has threads, and its torch need not be copied.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardFunctionConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.answers import Answer
from rlhf_ray.rewards.functions.channel import Channel, MessageTooLong
from rlhf_ray.rewards.functions.containment import Containment
from rlhf_ray.rewards.functions.family import children
from rlhf_ray.rewards.functions.keeper import SETTLE
from rlhf_ray.rewards.functions.replies import Expected, UnexpectedReply, read_reply
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import RewardSample

# Importing a user's module may load torch or a model.
START_TIMEOUT_S = 300.0
# For the process to end by itself: after the worker has closed the socket, or has found it closed.
_CLOSE_TIMEOUT_S = 2.0
_KILL_TIMEOUT_S = 30.0
_MAX_START_BYTES = 1 << 20

# One call: position of the sample, position of the function.
Item = tuple[int, int]

_log = logging.getLogger(__name__)


class FunctionProcess:
    """A child process with the reward functions, started again whenever it is lost.

    Args:
        timeout_s: limit for one function on one sample.
        start_timeout_s: limit for the start, imports of the functions' modules included.
    """

    def __init__(
        self,
        functions: Sequence[RewardFunctionConfig],
        containment: Containment,
        *,
        timeout_s: float,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self._functions = tuple(functions)
        self._containment = containment
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._guard: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._keeper: Channel | None = None
        self._num_ended = 0

    @property
    def num_ended_processes(self) -> int:
        """Processes that functions had left behind without a parent, and that were ended."""
        return self._num_ended

    def start(self) -> None:
        """Start the process and load the functions.

        Raises:
            RequestError: a function cannot be loaded, or the process cannot be contained as the
                settings ask for.
            RuntimeError: the process died or did not start in time.
        """
        launch = self._containment.launch(self._functions)
        channel, channel_theirs = socket.socketpair()
        control, control_theirs = socket.socketpair()
        with channel_theirs, control_theirs:
            theirs = (control_theirs.fileno(), channel_theirs.fileno())
            program = "rlhf_ray.rewards.functions.keeper"
            self._guard = subprocess.Popen(
                # -P: the current folder must not come first in the path; PYTHONPATH has it all.
                [sys.executable, "-u", "-P", "-m", program, *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                env=launch.environment,
                # A separate session: Ctrl-C reaches the driver alone, which ends the run in
                # order.
                start_new_session=True,
            )
        self._channel, self._keeper = Channel(channel), Channel(control)
        settings = {"limits": dataclasses.asdict(launch.limits), "command": launch.command}
        try:
            self._keeper.send(json.dumps(settings).encode(), self._timeout_s)
            self._channel.send(pickle.dumps(self._functions), self._start_timeout_s)
            data = self._channel.receive(
                max_bytes=_MAX_START_BYTES, timeout_s=self._start_timeout_s
            )
            reply = json.loads(data)
        except TimeoutError as error:
            self.kill()
            raise RuntimeError(
                f"the reward process did not start within {self._start_timeout_s:g} s; move long "
                "work in the reward functions' modules out of the import"
            ) from error
        except (EOFError, ConnectionError) as error:
            raise RuntimeError(
                f"the reward process ended while it started: {self._lost()}; its output is in "
                "this worker's log"
            ) from error
        except (ValueError, RecursionError) as error:
            self.kill()
            raise RuntimeError(
                "a module of the reward functions wrote to the socket of the reward process"
            ) from error
        if isinstance(reply, dict) and "refused" in reply:
            self.kill()
            raise RequestError(str(reply["refused"]))

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
            if not self._is_ready():
                self.kill()
                self.start()
            outcomes += self._run_until_lost(samples, items[len(outcomes) :])
        self._end_orphans()
        return outcomes

    def close(self) -> None:
        """Close the socket, at which the process ends by itself; kill it if it does not."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
            self._report(_CLOSE_TIMEOUT_S)
        self.kill()

    def kill(self) -> str:
        """Kill the process and all that it has started.

        Returns:
            How it ended, in words.
        """
        return self._end(wait_s=0.0)

    def _lost(self) -> str:
        """End a process that has closed its socket; says how it ended, in words."""
        return self._end(wait_s=_CLOSE_TIMEOUT_S)

    def _end(self, *, wait_s: float) -> str:
        """End the process and its family.

        Args:
            wait_s: for it to end by itself, so that its own exit status is reported.
        """
        if self._guard is None:
            return "it was not running"
        report = self._report(wait_s) if wait_s else {}
        for end in (self._channel, self._keeper):
            if end is not None:
                end.close()
        self._channel = self._keeper = None
        try:
            # The keeper ends all that the functions have started, and then itself.
            self._guard.wait(_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("the keeper of the reward functions was stopped; it is killed")
            self._kill_keeper(self._guard)
        self._guard = None
        return _in_words(report, sandboxed=self._containment.is_sandboxed)

    def _kill_keeper(self, guard: subprocess.Popen[bytes]) -> None:
        """Kill a keeper that does not end: the guard ends what it has kept, and then itself."""
        with contextlib.suppress(ProcessLookupError):
            for keeper in children(guard.pid):
                os.kill(keeper, signal.SIGKILL)
        try:
            guard.wait(_KILL_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            # The guard has not been reaped: its id, its group's too, belongs to no other yet.
            os.killpg(guard.pid, signal.SIGKILL)
            guard.wait(_KILL_TIMEOUT_S)

    def _report(self, timeout_s: float) -> dict[str, Any]:
        """The keeper's last report; empty if none comes in time."""
        assert self._keeper is not None
        with contextlib.suppress(TimeoutError, EOFError, ConnectionError):
            while True:
                message = json.loads(self._keeper.receive(timeout_s=timeout_s))
                if "status" in message:
                    return message
        return {}

    def _is_ready(self) -> bool:
        """Whether the process is alive, and has said nothing that was not asked for."""
        ends = (self._channel, self._keeper)
        return all(end is not None and end.is_quiet() for end in ends)

    def _run_until_lost(
        self, samples: Sequence[RewardSample], items: Sequence[Item]
    ) -> list[Answer | ItemFailure]:
        """Outcomes of the first items: all, or those up to the item that ended the process."""
        assert self._channel is not None
        outcomes: list[Answer | ItemFailure] = []
        call = secrets.token_hex(8)
        try:
            # Without a limit, a child that is stopped (SIGSTOP) would block for ever.
            message = pickle.dumps((call, samples, items))
            self._channel.send(message, max(self._timeout_s, 1.0))
            for number, (sample, _) in enumerate(items):
                due = Expected(call=call, item=number, response=samples[sample].response)
                data = self._channel.receive(max_bytes=due.max_bytes, timeout_s=self._timeout_s)
                outcomes.append(read_reply(data, due))
        except TimeoutError:
            outcomes.append(self._late())
        except (EOFError, ConnectionError):
            outcomes.append(self._ended())
        except (UnexpectedReply, MessageTooLong) as error:
            self.kill()
            outcomes.append(
                ItemFailure(
                    kind=FailureKind.REWARD_PROTOCOL,
                    message=f"its process sent {error}; nothing but the project may write to the "
                    "socket of that process, which has been replaced",
                )
            )
        return outcomes

    def _late(self) -> ItemFailure:
        self.kill()
        return ItemFailure(
            kind=FailureKind.REWARD_TIMEOUT,
            message=f"it took longer than reward.timeout_s, {self._timeout_s:g} s",
        )

    def _ended(self) -> ItemFailure:
        """The failure of the item during which the process ended."""
        report = self._report(_CLOSE_TIMEOUT_S)
        self.kill()
        if report.get("limit"):
            return ItemFailure(kind=FailureKind.REWARD_LIMIT, message=report["limit"])
        how = _in_words(report, sandboxed=self._containment.is_sandboxed)
        return ItemFailure(kind=FailureKind.REWARD_WORKER_LOST, message=f"its process ended: {how}")

    def _end_orphans(self) -> None:
        """Have the keeper end the processes whose parents have ended."""
        if self._keeper is None:
            return
        try:
            self._keeper.send(SETTLE, _KILL_TIMEOUT_S)
            reply = json.loads(self._keeper.receive(timeout_s=_KILL_TIMEOUT_S))
        except (TimeoutError, EOFError, ConnectionError):
            self.kill()
            return
        ended = reply.get("ended", 0)
        if ended and not self._num_ended:
            _log.warning(
                "reward functions left %d processes behind without a parent; they were ended, and "
                "so will others be (further ones are not reported)",
                ended,
            )
        self._num_ended += ended


def _in_words(report: dict[str, Any], *, sandboxed: bool) -> str:
    """The end of the functions' process, from the keeper's report."""
    if not report:
        return "it closed its socket, or its keeper was ended"
    if report["status"] is None:
        return report["limit"] or "it was killed"
    code = os.waitstatus_to_exitcode(report["status"])
    if sandboxed and code > 128:
        code = 128 - code  # as a shell does, bubblewrap reports a signal
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
