"""The child process that runs reward functions: its main program.

    python -m rlhf_ray.rewards.function_runner FD PARENT

Started and killed by `function_process.py`. It imports neither torch nor Ray, so that it is up in
a fraction of a second; only a user's function may import them. Results travel over a separate
socket, so that whatever a function prints goes to the worker's log.

Messages in, pickled: first the entries, then (samples, items), where an item is
(position of the sample, position of the function). Messages out, JSON: one for the
start, then one for every item, in order, as soon as it is done.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.rewards.answers import to_message
from rlhf_ray.rewards.load import LoadedReward, load_reward
from rlhf_ray.rewards.protocol import RewardSample

_PR_SET_PDEATHSIG = 1
_MAX_MESSAGE_CHARACTERS = 2000


def main() -> None:
    descriptor, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    # Programs that a function starts must not inherit the socket and hold it open.
    os.set_inheritable(descriptor, False)
    _die_with_parent(parent_pid)
    try:
        _serve(Connection(descriptor))
    except (EOFError, ConnectionError):
        # The worker has closed the connection, or has ended.
        return


def _serve(connection: Connection) -> None:
    try:
        rewards = [load_reward(entry) for entry in pickle.loads(connection.recv_bytes())]
    except RequestError as error:
        _send(connection, {"refused": str(error)})
        return
    _send(connection, {"ready": True})
    while True:
        samples, items = pickle.loads(connection.recv_bytes())
        for sample, function in items:
            _send(connection, _score(rewards[function], samples[sample]))


def _score(reward: LoadedReward, sample: RewardSample) -> dict[str, Any]:
    """Call one function on one sample. The named recovery point for errors of reward functions."""
    try:
        # Inside `try`, because reading the returned value may run user code too: a custom
        # sequence or `repr`.
        return to_message(reward.function(sample), sample.response)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - becomes a typed failure
        return {"failed": "error", "message": _describe(error)}


def _describe(error: BaseException) -> str:
    """Describe an error: type, message, file, line and function."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    place = ""
    if frames:
        last = frames[-1]
        place = f" ({last.filename}, line {last.lineno}, in {last.name})"
    return text[:_MAX_MESSAGE_CHARACTERS] + place


def _send(connection: Connection, message: dict[str, Any]) -> None:
    connection.send_bytes(json.dumps(message).encode())


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, whatever it is doing.

    The socket closes then too, but it is not read while a function runs.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    # A parent that ended before the call above sends no signal.
    if os.getppid() != parent_pid:
        sys.exit("the reward worker ended before its process was up")


if __name__ == "__main__":
    main()
