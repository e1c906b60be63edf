"""Reward functions that leave processes behind, look around, use too much, or fake replies."""

import asyncio
import gc
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

HEADER = struct.Struct("!Q")
DAEMON = (
    "import os, sys, time\n"
    "if os.fork(): os._exit(0)\n"
    "os.setsid()\n"
    "if os.fork(): os._exit(0)\n"
    "open(sys.argv[1], 'a').write(f'{os.getpid()}\\n')\n"
    "time.sleep(300)\n"
)


def daemonises(sample, file):
    """Leave a process that has a session of its own, and no living parent."""
    before = len(Path(file).read_text().splitlines()) if Path(file).exists() else 0
    subprocess.run([sys.executable, "-S", "-c", DAEMON, file], check=True)
    while not Path(file).exists() or len(Path(file).read_text().splitlines()) == before:
        time.sleep(0.01)
    if sample.response == "crash":
        os._exit(3)
    if sample.response == "hang":
        time.sleep(300)
    return 1.0


def daemonises_and_ends_keeper(sample, file):
    """Leave a daemon, and then kill or stop the process that would end it."""
    daemonises(SimpleNamespace(response=""), file)
    os.kill(os.getppid(), signal.SIGKILL if sample.response == "kill" else signal.SIGSTOP)
    time.sleep(300)


class KeepsHelper:
    """A helper program that is started once and asked in every call."""

    def __init__(self):
        self._helper = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, sample):
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        self._helper.stdin.write(b"7\n")
        self._helper.stdin.flush()
        return float(self._helper.stdout.readline())


def raises(sample):
    """Raise what is no Exception."""
    raise {
        "interrupt": KeyboardInterrupt,
        "exit": SystemExit,
        "generator": GeneratorExit,
        "cancelled": asyncio.CancelledError,
    }[sample.response]("stop")


def forks(sample):
    """Fork, and return in both processes."""
    os.fork()
    return 2.0


def bomb(sample):
    """Double the number of processes without end; for ten seconds, lest a machine is lost."""
    own_pid, end = os.getpid(), time.monotonic() + 10
    while time.monotonic() < end:
        os.fork()
    if os.getpid() != own_pid:
        os._exit(0)
    return 1.0


def uses(sample, folder="/tmp"):
    """Use more than allowed, of what the response names."""
    if sample.response == "memory":
        return float(len(bytearray(3 << 30)))
    if sample.response == "files":
        files = [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
        return float(len(files))
    if sample.response == "file":
        with open(Path(folder, "long"), "wb") as file:
            file.truncate(0)
            for _ in range(64):
                file.write(b"x" * (1 << 20))
        return 1.0
    if sample.response == "processes":
        children = [subprocess.Popen(["sleep", "300"]) for _ in range(30)]
        time.sleep(60)
        return float(len(children))
    if sample.response == "together":
        code = "import time; kept = bytearray(b'x') * (150 << 20); time.sleep(60)"
        children = [subprocess.Popen([sys.executable, "-S", "-c", code]) for _ in range(4)]
        time.sleep(60)
        return float(len(children))
    return 1.0


def sees(sample):
    """Whether the variable that the response names can be seen, here or in its ancestors."""
    found = sample.response in os.environ
    pid = os.getppid() if sample.response.startswith("HIDDEN") else 0
    for _ in range(2 if pid else 0):
        found |= sample.response.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        status = Path(f"/proc/{pid}/stat").read_text()
        pid = int(status.rpartition(")")[2].split()[1])
    return float(found)


def own_sockets():
    """The sockets of this process, as duplicates."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.append(socket.socket(fileno=os.dup(int(name))))
        except OSError:
            continue
    return found


def write_everywhere(data, framed=True):
    for end in own_sockets():
        end.sendall((HEADER.pack(len(data)) if framed else b"") + data)


def fakes(sample):
    """Write into the own socket what the response names; answers 1.0 otherwise."""
    junk = {
        "old form": b'{"value": 99.0}',
        "not json": b"\xff\xfe junk",
        "a list": b"[1, 2]",
        "nested": b"[" * 100_000,
        "no value": b'{"call": "x", "item": 0}',
    }
    if sample.response in junk:
        write_everywhere(junk[sample.response])
    if sample.response == "huge":
        write_everywhere(HEADER.pack(1 << 60), framed=False)
    if sample.response == "drip":
        return drip()
    if sample.response == "closes":
        for end in own_sockets():
            os.close(end.detach())
        for name in list(os.listdir("/proc/self/fd")):
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:
                    continue
        time.sleep(60)
    if sample.response == "later":
        threading.Timer(0.2, write_everywhere, [b'{"value": 99.0}']).start()
    return 1.0


def drip():
    """A long message, a byte at a time."""
    (end,) = own_sockets()
    end.sendall(HEADER.pack(100_000))
    while True:
        end.sendall(b" ")
        time.sleep(0.02)


def steals_the_call(sample):
    """Take the secret of the call from the frames of the callers, and answer for the next item."""
    if sample.response == "thief":
        frame = sys._getframe()
        while "call" not in frame.f_locals:
            assert frame.f_back is not None
            frame = frame.f_back
        reply = {"call": frame.f_locals["call"], "item": 1, "value": 99.0}
        write_everywhere(json.dumps(reply).encode())
    return 1.0


def patches(sample):
    """Patch the checks of this process, and return NaN."""
    import math

    math.isfinite = lambda number: True
    gc.collect()
    return float("nan")


def stops_keeper(sample):
    """Kill or stop the keeper, the parent of this process."""
    os.kill(os.getppid(), signal.SIGKILL if sample.response == "kill" else signal.SIGSTOP)
    time.sleep(60)
    return 1.0


def looks_around(sample, target=""):
    """Try, in a sandbox, what the response names; 1.0 if it could be done."""
    try:
        if sample.response == "write":
            Path(target).write_text("x")
        elif sample.response == "scratch":
            Path("/tmp/scratch").write_text("x")
        elif sample.response == "read":
            return float(Path(target).exists())
        elif sample.response == "network":
            socket.create_connection(("127.0.0.1", int(target)), timeout=2).close()
        elif sample.response == "processes":
            return float(sum(name.isdigit() for name in os.listdir("/proc")))
        elif sample.response == "signal":
            os.kill(int(target), 0)
    except OSError:
        return 0.0
    return 1.0


def changes_the_sample(sample):
    sample.columns["changed"] = True
    object.__setattr__(sample, "response", "changed")
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return 0.0


def reads_the_sample(sample):
    """1.0 if the sample is untouched, and no signal ends the process meanwhile."""
    time.sleep(0.4)
    return float(sample.response != "changed" and "changed" not in sample.columns)
