"""Signals that end a command: their exit status, one message, at every moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.interrupts import ABANDONED

pytestmark = pytest.mark.unit_slow

REPOSITORY = Path(__file__).parents[2]
STATUS = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}
# A command that says when it is ready, and ends after a minute.
SCRIPT = """
import signal, sys, time
from rlhf_ray.interrupts import EXIT_SIGNALS, EndOnSignal, Interrupted, leave

EndOnSignal().install(*EXIT_SIGNALS, signal.SIGINT)
status = 0
try:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep(1)
        print("clean", flush=True)
except Interrupted as end:
    status = end.code
leave(status)
"""


def start(script: str, **options) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def restore_signals() -> None:
    """A shell that starts tests in the background has SIGINT ignored, and `nohup` SIGHUP."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


@pytest.mark.parametrize("number", list(STATUS))
def test_a_signal_ends_in_order_with_its_status(number):
    process = start(SCRIPT, preexec_fn=restore_signals)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == "cleaning\n"
    process.send_signal(number)  # `timeout` and Slurm send it again; the end stays in order.
    out, err = process.communicate(timeout=30)
    assert out == "clean\n"
    assert err == f"rlhf_ray: {number.name}: ending the run\n"
    assert process.returncode == STATUS[number]


def test_nohup_stays_deaf_to_a_hang_up():
    process = start(SCRIPT, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.kill()
    process.communicate()


def test_a_fork_ends_without_a_word():
    """A pool ends its workers by SIGTERM: that is no end of the run."""
    script = """
import os, signal, time
from rlhf_ray.interrupts import EndOnSignal

EndOnSignal().install()
if (pid := os.fork()) == 0:
    time.sleep(60)
time.sleep(0.2)
os.kill(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    out, err = start(script).communicate(timeout=30)
    assert (out, err) == ("-15\n", "")


IMPORTTIME = [sys.executable, "-X", "importtime", "-m", "rlhf_ray.main"]


@pytest.mark.parametrize("moment_s", [0.15, 0.4, 0.8, 1.2])
@pytest.mark.parametrize("number", list(STATUS))
def test_the_command_has_the_status_while_it_imports(number, moment_s, tmp_path):
    process = subprocess.Popen(
        [*IMPORTTIME, "recipe=demo", f"output_dir={tmp_path}"],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_signals,
    )
    assert process.stderr is not None
    # The handler is there after this import and before the next one, which follows.
    lines = iter(process.stderr.readline, "")
    assert any("rlhf_ray.unread_output" in line for line in lines)
    assert next(lines)
    time.sleep(moment_s)
    assert process.poll() is None, "imports of a run take seconds"
    process.send_signal(number)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == STATUS[number]
    assert "Traceback" not in rest
    assert "ending the run" in rest or "interrupted" in rest


def test_a_closed_standard_error_is_no_obstacle():
    process = start(SCRIPT, preexec_fn=lambda: os.close(2))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_an_abandoned_call_does_not_hold_up_the_end():
    script = f"""
import atexit, threading, time
from rlhf_ray.interrupts import leave

atexit.register(lambda: time.sleep(60))  # As the exit function of a library that waits.
threading.Thread(target=time.sleep, args=(60,), name={ABANDONED!r}, daemon=True).start()
print("last words")
leave(7)
"""
    process = start(script)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out) == (7, "last words\n")


def test_exit_functions_run_and_the_interpreter_is_not_taken_apart():
    """A library's thread in C++ may crash when it is: its status must not count."""
    script = """
import atexit, threading, time
from rlhf_ray.interrupts import leave

class TakenApart:
    def __del__(self):
        import os
        os.abort()

kept = TakenApart()
atexit.register(lambda: print("exit function"))
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
leave(143)
"""
    process = start(script)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "thread\nexit function\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["thread", "exit function"])
def test_a_signal_at_the_end_does_not_change_the_status(where, number):
    """While a thread or an exit function is waited for."""
    wait = "lambda: (print('waiting', flush=True), time.sleep(60))"
    script = """
import atexit, signal, threading, time
from rlhf_ray.interrupts import CtrlC, EndOnSignal, leave

EndOnSignal().install()
signal.signal(signal.SIGINT, CtrlC())
"""
    if where == "thread":
        script += f"threading.Thread(target={wait}).start()\n"
    else:
        script += f"atexit.register({wait})\n"
    process = start(script + "leave(7)", preexec_fn=restore_signals)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.5)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 7


def test_output_that_cannot_be_written_is_a_failure():
    script = "from rlhf_ray.interrupts import leave; print('lost'); leave(0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", script],
            cwd=REPOSITORY,
            env={**buffered, "PYTHONPATH": str(REPOSITORY)},
            stdout=full,
            check=False,
            timeout=60,
        )
    assert process.returncode == 120
