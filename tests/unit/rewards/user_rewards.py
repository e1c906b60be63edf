"""Reward functions as a user may write them, good and bad; they run in the child process."""

import ctypes
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rlhf_ray.rewards import StepRewards

CONSTANT = 3


def letters(sample, scale=1.0):
    """Number of characters of the response."""
    return scale * len(sample.response)


class Prefix:
    def __init__(self, text):
        self.text = text

    def __call__(self, sample):
        return sample.response.startswith(self.text)


class Refuses:
    def __init__(self, size):
        raise ValueError(f"size {size} is too large")


async def later(sample):
    return 1.0


def by_response(sample):
    """Misbehave in the way that the response names."""
    actions = {
        "divide": lambda: 1 / 0,
        "sleep": lambda: time.sleep(60),
        "regex": lambda: re.match(r"(a+)+$", "a" * 64 + "b"),
        "hold": lambda: ctypes.PyDLL(None).sleep(60),
        "exit": lambda: os._exit(3),
        "sys_exit": lambda: sys.exit(4),
        "segfault": lambda: ctypes.string_at(0),
        "nan": lambda: float("nan"),
        "infinity": lambda: float("-inf"),
        "huge": lambda: 10**400,
        "text": lambda: "1.0",
        "none": lambda: None,
    }
    if sample.response in actions:
        return actions[sample.response]()
    return 1.0


def by_letter(sample, capital=1.0, other=0.0):
    """A step for every character."""
    rewards = [capital if letter.isupper() else other for letter in sample.response]
    return StepRewards(rewards=tuple(rewards), ends=tuple(range(1, len(rewards) + 1)))


def bad_steps(sample):
    """Return steps that are wrong in the way that the response names."""
    rewards, ends = {
        "nan": ([1.0, float("nan")], [1, 2]),
        "far": ([1.0], [99]),
        "back": ([1.0, 1.0], [2, 1]),
        "many": ([1.0], [1, 2]),
        "broken": ([1.0], Broken()),
    }.get(sample.response, ([1.0], [1]))
    return StepRewards(rewards=rewards, ends=ends)


class Broken:
    def __iter__(self):
        raise RuntimeError("no list for you")


def prints(sample):
    print('{"value": 99.0}', flush=True)
    os.write(1, b"raw bytes on the standard output\n")
    return 0.5


def counts_calls(sample, folder, fail_first):
    """Fails the first `fail_first` calls for a sample; every call leaves a file."""
    calls = len(list(Path(folder).glob(f"{sample.sample_index}-*")))
    Path(folder, f"{sample.sample_index}-{calls}").touch()
    if calls < fail_first:
        raise RuntimeError(f"call {calls} fails")
    return float(calls)


def process_id(sample):
    return os.getpid()


def leaves_program(sample, folder):
    """Starts a program that outlives the call, then hangs."""
    program = subprocess.Popen(["sleep", "300"])
    Path(folder, "pid").write_text(str(program.pid))
    time.sleep(60)
    return 0.0


def imports_torch(sample):
    return float("torch" in sys.modules or "ray" in sys.modules)


def column(sample, name):
    return sample.columns[name] + (sample.answer == "42") + (sample.source == "sums")
