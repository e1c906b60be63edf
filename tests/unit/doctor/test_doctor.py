"""The doctor on machines that are made up: files below a folder, and the answers of programs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlhf_ray.doctor import command
from rlhf_ray.doctor.command import LOOKS, all_findings
from rlhf_ray.doctor.devices import look_at_gpus, look_at_network
from rlhf_ray.doctor.libraries import _other_versions, look_at_ray
from rlhf_ray.doctor.limits import look_at_disks, look_at_environment
from rlhf_ray.doctor.memory import look_at_cpus, look_at_memory, look_at_shared_memory
from rlhf_ray.doctor.symptom import Machine, Severity, Symptom, output_of
from rlhf_ray.main import main

GIB = 1024**3


def machine_with(
    root: Path,
    files: dict[str, str] | None = None,
    *,
    environ: dict[str, str] | None = None,
    answer: str | None = None,
) -> Machine:
    for name, text in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def output(_command: Sequence[str], _timeout_s: float) -> str | None:
        return answer

    return Machine(
        root=root, environ={"CUDA_VISIBLE_DEVICES": "0"} | (environ or {}), output=output
    )


def worst(findings: list[Symptom]) -> Severity:
    order = list(Severity)
    return max((finding.severity for finding in findings), key=order.index)


GPU = "NVIDIA H100 80GB HBM3, 81559, {used}, 570.86, {mode}, {mig}, {errors}, {reasons}, 700.00\n"
CLEAN = {"used": 4, "mode": "Default", "mig": "Disabled", "errors": 0, "reasons": "0x0"}


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        ({}, Severity.FINE, "2 x NVIDIA H100 80GB HBM3, 79.6 GiB, driver 570.86"),
        ({"used": 30000}, Severity.SLOW, "GPU 1: 29.3 GiB are used by something else"),
        ({"mode": "Exclusive_Process"}, Severity.BROKEN, "compute mode Exclusive_Process"),
        ({"mig": "Enabled"}, Severity.SLOW, "is divided (MIG)"),
        ({"errors": 3}, Severity.BROKEN, "3 memory errors that were not corrected"),
        ({"reasons": "0x0000000000000040"}, Severity.SLOW, "clocks are slowed down"),
        # Idle, and at the power limit: as it should be.
        ({"reasons": "0x0000000000000005"}, Severity.FINE, "2 x NVIDIA"),
        # What the card does not have.
        ({"errors": "[N/A]", "mig": "[N/A]", "reasons": "[N/A]"}, Severity.FINE, "2 x NVIDIA"),
    ],
)
def test_gpus(tmp_path, change, severity, words):
    answer = GPU.format(**CLEAN) + GPU.format(**(CLEAN | change))
    found = list(look_at_gpus(machine_with(tmp_path, answer=answer)))
    assert worst(found) is severity
    assert any(words in str(finding) for finding in found)


def test_gpus_that_do_not_answer_are_no_cpu_machine(tmp_path):
    (none,) = look_at_gpus(machine_with(tmp_path))
    assert none.severity is Severity.FINE
    (hidden,) = look_at_gpus(machine_with(tmp_path, {"dev/nvidia0": ""}))
    assert hidden.severity is Severity.BROKEN
    assert "--gpus all" in hidden.advice


MEMINFO = f"MemTotal: {64 * 1024**2} kB\nMemFree: 1 kB\nMemAvailable: {32 * 1024**2} kB\n"


@pytest.mark.parametrize(
    ("files", "severity", "words"),
    [
        ({}, Severity.FINE, "64.0 GiB, 32.0 available"),
        # The limit of the job, above the folder of this process.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/memory.max": f"{8 * GIB}\n",
            },
            Severity.SLOW,
            "the cgroup allows 8.0 GiB",
        ),
        ({"sys/fs/cgroup/memory.max": f"{4 * GIB}"}, Severity.SLOW, "allows 4.0 GiB"),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, Severity.FINE, ""),
        ({"proc/sys/vm/overcommit_memory": "2"}, Severity.SLOW, "vm.overcommit_memory=0"),
    ],
)
def test_memory_and_its_cgroup(tmp_path, files, severity, words):
    found = list(look_at_memory(machine_with(tmp_path, {"proc/meminfo": MEMINFO, **files})))
    assert worst(found) is severity
    assert any(words in str(finding) for finding in found)


def test_a_quota_of_cpus_is_said(tmp_path):
    files = {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/cpu.max": "50000 100000"}
    found = [str(finding) for finding in look_at_cpus(machine_with(tmp_path, files))]
    assert "the cgroup gives time for 0.5" in found[0]
    assert "--num-cpus=1" in found[0]


def test_shared_memory_of_a_container(tmp_path, monkeypatch):
    machine = machine_with(tmp_path)
    (gone,) = look_at_shared_memory(machine)
    assert gone.severity is Severity.BROKEN
    (tmp_path / "dev/shm").mkdir(parents=True)
    usage = (64 * 2**20, 0, 64 * 2**20)
    monkeypatch.setattr(
        "rlhf_ray.doctor.memory.shutil.disk_usage",
        lambda _: type("Usage", (), dict(zip(("total", "used", "free"), usage, strict=True))),
    )
    (small,) = look_at_shared_memory(machine)
    assert small.severity is Severity.BROKEN
    assert "--shm-size" in small.advice


def test_the_network(tmp_path):
    files = {
        "sys/class/net/lo/operstate": "unknown",
        "sys/class/net/eth0/operstate": "up",
        "sys/class/net/eth0/speed": "100000",
        "sys/class/net/eth0/mtu": "9000",
        "sys/class/net/eth1/operstate": "down",
    }
    machine = machine_with(tmp_path, files)
    first, *_ = look_at_network(machine)
    assert first.what == "network: eth0 (100 Gb/s, MTU 9000)"
    more = {
        "sys/class/net/ib0/operstate": "up",
        "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
        "dev/nvidia0": "",
    }
    found = list(look_at_network(machine_with(tmp_path, files | more)))
    assert "placement.network_interface" in found[0].advice
    assert found[1].what == "InfiniBand: mlx5_0 400 Gb/sec (4X NDR)"
    assert "nvidia_peermem" in found[2].what


def test_the_environment(tmp_path):
    (clean,) = look_at_environment(machine_with(tmp_path, environ={"NCCL_DEBUG": "WARN"}))
    assert clean.severity is Severity.FINE
    environ = {"http_proxy": "http://user:word@proxy", "NCCL_P2P_DISABLE": "1"}
    found = list(look_at_environment(machine_with(tmp_path, environ=environ)))
    assert [finding.severity for finding in found] == [Severity.SLOW, Severity.SLOW]
    assert "word" not in "".join(map(str, found)), "a password is not shown"
    found = list(look_at_environment(machine_with(tmp_path, environ={"CUDA_VISIBLE_DEVICES": ""})))
    assert "no GPU is seen" in str(found[0])


def test_a_long_folder_of_temporary_files(tmp_path):
    machine = machine_with(tmp_path, environ={"HOME": str(tmp_path), "TMPDIR": "/tmp/" + "a" * 60})
    assert "107 characters" in str(list(look_at_disks(machine))[-1])


def test_versions_that_are_not_those_that_are_asked_for():
    wanted = ["pytest>=1", "pytest==0.1", "no-such-library-here>2", 'pytest==0.2; extra == "gpu"']
    found = list(_other_versions(wanted))
    assert len(found) == 2
    assert "is installed, ==0.1 is wanted" in found[0]
    assert found[1].startswith("no-such-library-here is not installed, >2")


def test_a_ray_that_runs_and_one_that_does_not_answer(tmp_path):
    (none,) = look_at_ray(machine_with(tmp_path))
    assert none.severity is Severity.FINE
    files = {"tmp/ray/ray_current_cluster": "10.0.0.1:6379"}
    (silent,) = look_at_ray(machine_with(tmp_path, files))
    assert silent.severity is Severity.SLOW
    answer = "Active:\n 1 node_aa\n 1 node_bb\nUsage:\n 2.0/64.0 CPU\n 0.0/16.0 GPU\n"
    (running,) = look_at_ray(machine_with(tmp_path, files, answer=answer))
    assert running.what.endswith("on 2 nodes; in use: 2.0/64.0 CPU, 0.0/16.0 GPU")


def test_a_look_that_hangs_or_fails_leaves_the_others(tmp_path):
    never = threading.Event()

    def hangs(_machine: Machine):
        never.wait(30)
        return []

    def fails(_machine: Machine):
        raise OSError("stale file handle")

    looks = {"a": hangs, "b": fails, "c": lambda _: [Symptom(what="fine")]}
    start = time.monotonic()
    found = all_findings(machine_with(tmp_path), looks, deadline_s=0.2)
    assert time.monotonic() - start < 5
    never.set()
    assert [finding.what for finding in found] == [
        "a: no answer within 0.2 s",
        "b: could not be looked at (OSError: stale file handle)",
        "fine",
    ]


def test_a_program_that_hangs_has_no_answer():
    assert output_of(["sleep", "30"], 0.1) is None
    assert output_of(["no-such-program-here"], 1) is None
    assert output_of(["false"], 5) is None
    assert output_of(["echo", "a"], 5) == "a\n"


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr(command, "LOOKS", {"a": lambda _: [Symptom(what="a thing")]})
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out == (
        "[  ok] a thing\n1 things: 0 will end runs, 0 will hurt some\n"
    )
    bad = Symptom(what="b", severity=Severity.BROKEN, advice="mend it")
    monkeypatch.setattr(command, "LOOKS", {"a": lambda _: [bad]})
    assert main(["doctor"]) == 1
    assert main(["doctor", "me"]) == 2
    assert len(LOOKS) == 10
