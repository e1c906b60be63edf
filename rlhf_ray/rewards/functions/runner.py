"""The process that calls reward functions.

    python -m rlhf_ray.rewards.functions.runner LIMITS CHANNEL

`keeper.py` becomes this process, or runs it as a program in a sandbox. It imports neither torch nor
Ray, so that it is up in a fraction of a second; only a user's function may import them. Results
travel over a separate socket, so that whatever a function prints goes to the worker's log.

Messages in, pickled: first the entries, then (call, samples, items), where an item is (position of
the sample, position of the function). Messages out, JSON: one for the start, then one for every
item, in order, as soon as it is done, with the secret of the call and the number of the item.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import random
import signal
import socket
import sys
import traceback
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.rewards.answers import to_message
from rlhf_ray.rewards.functions.channel import Channel
from rlhf_ray.rewards.functions.limits import FunctionLimits
from rlhf_ray.rewards.load import LoadedReward, load_reward
from rlhf_ray.rewards.protocol import RewardSample

_MAX_MESSAGE_CHARACTERS = 2000


def main() -> None:
    limits, descriptor = FunctionLimits(**json.loads(sys.argv[1])), int(sys.argv[2])
    serve(socket.socket(fileno=descriptor), limits)


def serve(end: socket.socket, limits: FunctionLimits) -> None:
    """Load the functions, and answer calls until the worker closes the socket."""
    # A function that reads the command line finds no descriptor there.
    sys.argv = sys.argv[:1]
    try:
        _serve(Channel(_moved(end)), limits)
    except (EOFError, ConnectionError):
        # The worker has closed the socket, or has ended.
        return


def _moved(end: socket.socket) -> socket.socket:
    """Move a socket to a descriptor that no function meets by accident.

    Programs that a function starts do not inherit it.
    """
    lowest = random.SystemRandom().randrange(20, 40)
    moved = fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, lowest)
    end.close()
    return socket.socket(fileno=moved)


def _serve(channel: Channel, limits: FunctionLimits) -> None:
    own_pid = os.getpid()
    try:
        rewards = [load_reward(entry) for entry in pickle.loads(channel.receive())]
    except RequestError as error:
        _send(channel, {"refused": str(error)})
        return
    _send(channel, {"ready": True})
    while True:
        call, samples, items = pickle.loads(channel.receive())
        # Every function gets an own copy: one that changes it changes nothing for the next.
        copies = [pickle.dumps(sample) for sample in samples]
        for number, (sample, function) in enumerate(items):
            reply = _score(rewards[function], pickle.loads(copies[sample]), limits)
            # A timer that a function leaves behind would end the next one.
            for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
                signal.setitimer(timer, 0)
            if os.getpid() != own_pid:
                # A function has forked, and its child has returned from the call, too.
                os._exit(0)
            _send(channel, {"call": call, "item": number, **reply})


def _score(reward: LoadedReward, sample: RewardSample, limits: FunctionLimits) -> dict[str, Any]:
    """Call one function on one sample. The named recovery point for errors of reward functions."""
    response = sample.response
    try:
        # Inside `try`, because reading the returned value may run user code too: a custom
        # sequence or `repr`.
        return to_message(reward.function(sample), response)
    except BaseException as error:  # noqa: BLE001 - becomes a typed failure, `sys.exit` included
        reached = limits.reached_by(error)
        if reached is None:
            return {"failed": "error", "message": _describe(error)}
        return {"failed": "limit", "message": f"{reached}: {_describe(error)}"}


def _describe(error: BaseException) -> str:
    """Describe an error: type, message, file, line and function."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = traceback.extract_tb(error.__traceback__)
    place = ""
    if frames:
        last = frames[-1]
        place = f" ({last.filename}, line {last.lineno}, in {last.name})"
    return text[:_MAX_MESSAGE_CHARACTERS] + place


def _send(channel: Channel, message: dict[str, Any]) -> None:
    channel.send(json.dumps(message).encode())


if __name__ == "__main__":
    main()
