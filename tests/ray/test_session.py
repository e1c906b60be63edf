"""A driver on a real local Ray: signals, the loss of Ray's processes, ports, what is left over."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parents[2]
# Of a machine that is three times slower than a developer's.
START_S = 180
pytestmark = pytest.mark.timeout(400)


class Driver:
    """`bare_driver` in a session of its own, and all that it has started."""

    def __init__(self, folder: Path, *, ray_s: float, seconds: float, **variables: str) -> None:
        self.folder = folder
        self.log = folder / "log"
        command = [sys.executable, "-m", "tests.ray.bare_driver", str(folder), str(ray_s)]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, str(seconds)],
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.seen: dict[int, psutil.Process] = {}

    @property
    def text(self) -> str:
        return self.log.read_text()

    def wait_for(self, word: str) -> None:
        deadline = time.monotonic() + START_S
        while word not in self.text:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.05)
        self.look()

    def look(self) -> list[psutil.Process]:
        """Every descendant; remembered, too, when its parent is gone."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            self.seen[child.pid] = child
        return list(self.seen.values())

    def pid_of(self, title: str) -> int:
        found = re.search(rf"^{title}: (\d+)$", self.text, re.MULTILINE)
        assert found, self.text
        return int(found[1])

    def ends(self, within_s: float) -> int:
        started = time.monotonic()
        try:
            status = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not ended after {time.monotonic() - started:.0f} s:\n{self.text[-3000:]}")
        return status

    def remains(self, within_s: float = 30) -> list[str]:
        deadline = time.monotonic() + within_s
        while (living := [p for p in self.seen.values() if lives(p)]) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.1)
        return [" ".join(p.cmdline()) for p in living]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path):
    drivers: list[Driver] = []

    def make(*, ray_s: float = 5, seconds: float = 300, **variables: str) -> Driver:
        drivers.append(Driver(tmp_path, ray_s=ray_s, seconds=seconds, **variables))
        return drivers[-1]

    yield make
    for driver in drivers:
        for process in (driver.process, *filter(lives, driver.seen.values())):
            process.kill()
        driver.process.wait()


@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_only_and_leaves_nothing(start):
    driver = start(seconds=5)
    driver.wait_for("ready")
    ports = [
        (process.name(), connection.laddr)
        for process in [psutil.Process(driver.process.pid), *driver.look()]
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(ports) > 5
    assert [(name, where) for name, where in ports if not is_loopback(where.ip)] == []
    # A signal to the driver's group must not reach Ray's processes.
    group = os.getpgid(driver.process.pid)
    assert [p.cmdline() for p in driver.look() if os.getpgid(p.pid) == group] == []
    assert driver.ends(60) == 0, driver.text
    assert driver.text.splitlines()[-2:] == ["ending", "ended"]
    assert driver.remains() == []


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


@pytest.mark.parametrize(
    ("title", "number", "words"),
    [
        ("raylet", signal.SIGKILL, "was killed by SIGKILL"),
        pytest.param("gcs_server", signal.SIGKILL, "was killed by SIGKILL", marks=pytest.mark.slow),
        pytest.param(
            "raylet",
            signal.SIGSTOP,
            "has been stopped (SIGSTOP) for longer than deadlines.ray_s=5",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "gcs_server",
            signal.SIGSTOP,
            "has been stopped (SIGSTOP) for longer than deadlines.ray_s=5",
            marks=pytest.mark.slow,
        ),
        pytest.param("dashboard agent", signal.SIGKILL, "is gone", marks=pytest.mark.slow),
        pytest.param("runtime env agent", signal.SIGKILL, "is gone", marks=pytest.mark.slow),
    ],
)
def test_a_lost_process_of_ray_ends_the_run_and_is_named(start, title, number, words):
    driver = start()
    driver.wait_for("ready")
    pid = driver.pid_of(title)
    os.kill(pid, number)
    assert driver.ends(60) == 1
    # Said at once, and again at the end.
    *_, failure = [line for line in driver.text.splitlines() if "failed: Ray's" in line]
    if words == "is gone":
        # Two looks later Ray has ended other agents, too; then all of them are named.
        assert f"{title} (process {pid})" in failure
        assert " on this node is gone" in failure
    else:
        assert f"failed: Ray's {title} (process {pid}) on this node {words}" in failure
    assert driver.remains() == []


@pytest.mark.slow
def test_a_process_of_ray_that_goes_on_in_time_is_forgiven(start):
    driver = start(ray_s=30, seconds=20)
    driver.wait_for("ready")
    os.kill(driver.pid_of("raylet"), signal.SIGSTOP)
    time.sleep(6)
    os.kill(driver.pid_of("raylet"), signal.SIGCONT)
    assert driver.ends(90) == 0, driver.text


@pytest.mark.slow
def test_a_gcs_that_hangs_at_the_end_does_not_hold_it_up(start):
    driver = start(ray_s=60, seconds=5)
    driver.wait_for("ready")
    os.kill(driver.pid_of("gcs_server"), signal.SIGSTOP)
    assert driver.ends(90) == 0, driver.text
    assert driver.text.splitlines()[-1] == "ended"
    assert driver.remains() == []


@pytest.mark.parametrize(
    ("number", "status"),
    [
        pytest.param(signal.SIGTERM, 143, id="TERM"),
        pytest.param(signal.SIGHUP, 129, id="HUP", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "to",
    [
        pytest.param("driver", marks=pytest.mark.slow),
        "group",
        pytest.param("all", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_with_its_status_whoever_gets_it(start, number, status, to):
    """`timeout` sends it to the group, systemd and Slurm to every process of the job."""
    driver = start()
    driver.wait_for("ready")
    everyone = driver.look()
    if to == "group":
        os.killpg(driver.process.pid, number)
    else:
        os.kill(driver.process.pid, number)
    if to == "all":
        for process in filter(lives, everyone):
            process.send_signal(number)
    assert driver.ends(60) == status, driver.text
    assert f"rlhf_ray: {number.name}: ending the run" in driver.text
    assert driver.remains() == []


@pytest.mark.parametrize(
    "after_s",
    [
        0.0,
        pytest.param(1.0, marks=pytest.mark.slow),
        3.0,
        pytest.param(6.0, marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_ray_starts(start, after_s):
    driver = start()
    driver.wait_for("connecting")
    time.sleep(after_s)
    driver.look()
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ends(60) == 143, driver.text
    assert "rlhf_ray: SIGTERM: ending the run" in driver.text
    assert driver.remains() == []


def test_a_driver_that_is_killed_leaves_nothing(start):
    driver = start()
    driver.wait_for("ready")
    assert any("DashboardAgent" in " ".join(p.cmdline()) for p in driver.look())
    driver.process.kill()
    driver.process.wait()
    assert driver.remains(15) == []


def guardians(driver: Driver) -> list[psutil.Process]:
    return [p for p in driver.look() if lives(p) and "guardian.py" in " ".join(p.cmdline())]


def test_a_killed_guardian_is_started_again(start):
    driver = start()
    driver.wait_for("ready")
    (first,) = guardians(driver)
    first.kill()
    driver.wait_for("another one was started")
    said = f"Ray with this one, {first.pid}, has ended (status -9): another one was started"
    assert said in driver.text
    (second,) = guardians(driver)
    assert second.pid != first.pid
    driver.process.kill()
    driver.process.wait()
    assert driver.remains(15) == []


@pytest.mark.slow
def test_a_guardian_that_is_killed_again_and_again_ends_no_run(start):
    driver = start(seconds=40)
    driver.wait_for("ready")
    for count in range(1, 5):
        (living,) = guardians(driver)
        living.kill()
        driver.wait_for("not started again" if count == 4 else f"{living.pid}, has ended")
    assert guardians(driver) == []
    assert driver.ends(120) == 0, driver.text
    assert driver.text.count("has ended (status -9)") == 4
    assert driver.remains() == []


def test_what_listens_but_is_no_cluster_is_refused(start):
    """A head node that hangs, or the port of another service."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        driver = start(RAY_ADDRESS=address)
        assert driver.ends(120) == 2, driver.text
    assert f"RAY_ADDRESS={address}: no Ray cluster answers there, within" in driver.text


def test_a_joined_cluster_that_stops_answering_ends_the_run(start):
    """The GCS is on another node: what the driver sees of its death is silence."""
    import ray

    gcs = ray.get_runtime_context().gcs_address
    with Relay(gcs) as relay:
        driver = start(RAY_ADDRESS=relay.address)
        driver.wait_for("ready")
        relay.silence()
        assert driver.ends(90) == 1
    assert f"failed: Ray's GCS at {relay.address} has not answered for longer than" in driver.text


class Relay:
    """A network between driver and GCS that can be cut without a word."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._server = socket.create_server((host, 0))
        self.address = f"{host}:{self._server.getsockname()[1]}"
        self._is_cut = threading.Event()

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def silence(self) -> None:
        self._is_cut.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        # The other direction closes both at its end.
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if self._is_cut.is_set():
                    return
                sink.sendall(data)
        sink.close()
