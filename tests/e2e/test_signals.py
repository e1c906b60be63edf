"""Real runs: a signal at every moment, the loss of Ray's processes, and the ports that are open."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import time

import psutil
import pytest

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
ENDLESS = (
    "num_steps=100000",
    "observe.rollouts=false",
    "observe.tensorboard=false",
    "deadlines.ray_s=8",
)


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def begin(make_run, moment: str, after_s: float):
    run = make_run(*ENDLESS)
    if moment == "step":
        run.wait_for_step(1)
    else:
        run.wait_until(lambda: "] start" in run.text, 240)
    time.sleep(after_s)
    run.descendants()
    return run


@pytest.mark.slow
def test_a_run_on_one_machine_is_not_on_the_network(make_run):
    run = begin(make_run, "step", 0)
    ports = []
    for process in [psutil.Process(run.process.pid), *run.descendants()]:
        # A helper of a worker may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline())
            ports += [
                (name, connection.laddr)
                for connection in process.net_connections(kind="inet")
                if connection.status == psutil.CONN_LISTEN
            ]
    # vLLM's process may keep the command line that it was started with.
    assert any("EngineCore" in name or "spawn_main" in name for name, _ in ports)
    assert any("Learner" in name for name, _ in ports)
    assert [(name, where) for name, where in ports if not is_loopback(where.ip)] == []


@pytest.mark.parametrize(
    ("moment", "after_s", "to_all"),
    [
        pytest.param("start", 2, False, id="ray starts", marks=pytest.mark.slow),
        pytest.param("start", 12, False, id="workers load", marks=pytest.mark.slow),
        pytest.param("start", 12, True, id="workers load, all", marks=pytest.mark.nightly),
        pytest.param("step", 1, True, id="step, all", marks=pytest.mark.slow),
    ],
)
def test_sigterm_is_143_at_every_moment(make_run, moment, after_s, to_all):
    """`to_all`: systemd and Slurm send it to every process of the job."""
    run = begin(make_run, moment, after_s)
    os.kill(run.process.pid, signal.SIGTERM)
    for process in run.descendants() if to_all else ():
        # It may have ended by itself meanwhile.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    assert run.wait(60) == 143, run.text[-3000:]
    assert "rlhf_ray: SIGTERM: ending the run" in run.text
    assert "ended by SIGTERM" in run.text
    assert run.survivors() == []


@pytest.mark.parametrize(
    ("title", "number", "words"),
    [
        pytest.param("raylet/raylet", signal.SIGKILL, "Ray's raylet", marks=pytest.mark.slow),
        pytest.param("raylet/raylet", signal.SIGSTOP, "Ray's raylet", marks=pytest.mark.nightly),
        pytest.param("gcs_server", signal.SIGSTOP, "Ray's gcs_server", marks=pytest.mark.nightly),
    ],
)
def test_the_loss_of_ray_is_reported(make_run, title, number, words):
    run = begin(make_run, "step", 1)
    os.kill(run.process_of(title).pid, number)
    assert run.wait(90) == 1, run.text[-3000:]
    # What was seen first, the death of a worker, has been said when it was seen.
    ours = run.text[run.text.rindex("rlhf_ray: failed: ") :].split("--- what followed")[0]
    assert f"failed: {words} (process " in ours
    assert "generator_0 died" not in ours
    assert words in (run.output / "error.log").read_text()
    assert run.survivors() == []


@pytest.mark.nightly
def test_a_killed_driver_leaves_nothing_behind(make_run):
    run = begin(make_run, "step", 1)
    run.process.kill()
    run.process.wait()
    assert run.survivors() == []
