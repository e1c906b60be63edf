"""Looks at CPUs and memory: of the machine, and of the cgroup that limits this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

from rlhf_ray.doctor.symptom import Machine, Symptom, broken, fine, slow

_GIB = 1024**3
_SMALL_SHM, _SMALL_MEMORY = 2 * _GIB, 8 * _GIB
_UNLIMITED = 2**60
_FEW_PROCESSES = 4096


def look_at_memory(machine: Machine) -> Iterator[Symptom]:
    """Memory of the machine and of its cgroup, and shared memory."""
    total = _meminfo(machine, "MemTotal")
    free = _meminfo(machine, "MemAvailable")
    limit = _cgroup_number(machine, "memory.max", "memory/memory.limit_in_bytes")
    if total is None:
        yield slow("memory: /proc/meminfo cannot be read", "mount /proc in the container")
        return
    words = f"memory: {total / _GIB:.1f} GiB, {(free or 0) / _GIB:.1f} available"
    if limit is not None and limit < total:
        yield slow(
            f"{words}; the cgroup allows {limit / _GIB:.1f} GiB",
            "what exceeds the limit is killed without a message: compare it with the host memory "
            "of stage=plan, or raise the limit of the container or the job",
        )
    elif (free or 0) < _SMALL_MEMORY:
        yield slow(words, "end other programs: learner, reference and engine need some GiB each")
    else:
        yield fine(words)
    if machine.text("proc/sys/vm/overcommit_memory") == "2":
        yield slow(
            "memory: the kernel does not overcommit (vm.overcommit_memory=2)",
            "workers reserve far more than they use: sysctl vm.overcommit_memory=0",
        )


def look_at_shared_memory(machine: Machine) -> Iterator[Symptom]:
    """/dev/shm, which has Ray's objects and the buckets of weights."""
    place = machine.root / "dev/shm"
    try:
        usage = shutil.disk_usage(place)
    except OSError:
        yield broken("/dev/shm: is not there", "mount a tmpfs: Ray's objects and NCCL need it")
        return
    words = f"/dev/shm: {usage.free / _GIB:.1f} of {usage.total / _GIB:.1f} GiB free"
    if usage.free < _SMALL_SHM:
        yield broken(
            words,
            "Ray's objects, weights between processes and NCCL need GiB of it: docker run "
            "--shm-size=16g or --ipc=host, in Kubernetes an emptyDir with medium: Memory",
        )
    else:
        yield fine(words)


def look_at_cpus(machine: Machine) -> Iterator[Symptom]:
    """CPUs that this process may use, by affinity and by quota."""
    usable = len(os.sched_getaffinity(0))
    there = os.cpu_count() or usable
    words = f"CPUs: {usable} of {there} usable"
    quota = _cpu_quota(machine)
    if quota is not None and quota < usable:
        yield slow(
            f"{words}; the cgroup gives time for {quota:.1f}",
            "threads that wait for their quota block each other: start Ray with --num-cpus="
            f"{max(1, int(quota))}, and keep the sum of cpu_threads below it",
        )
    else:
        yield fine(words)
    pids = _cgroup_number(machine, "pids.max", "pids/pids.max")
    if pids is not None and pids < _FEW_PROCESSES:
        yield slow(
            f"processes: the cgroup allows {pids:.0f}, threads included",
            f"raise it to {_FEW_PROCESSES} or more (docker run --pids-limit): Ray alone has "
            f"hundreds of threads",
        )


def _meminfo(machine: Machine, name: str) -> float | None:
    for line in (machine.text("proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key == name and value.split():
            return float(value.split()[0]) * 1024
    return None


def _cpu_quota(machine: Machine) -> float | None:
    """CPUs that the cgroup gives time for; None without a limit."""
    for folder in _cgroup_folders(machine):
        words = (machine.text(f"{folder}/cpu.max") or "").split()
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit():
            return int(words[0]) / int(words[1])
    quota = machine.text("sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = machine.text("sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota and period and quota.isdigit() and period.isdigit():
        return int(quota) / int(period)
    return None


def _cgroup_number(machine: Machine, name: str, old_name: str) -> float | None:
    """The lowest limit on the way to this process's cgroup; None without one."""
    texts = [machine.text(f"{folder}/{name}") for folder in _cgroup_folders(machine)]
    texts.append(machine.text(f"sys/fs/cgroup/{old_name}"))
    numbers = [float(text) for text in texts if text and text.isdigit()]
    limited = [number for number in numbers if number < _UNLIMITED]
    return min(limited) if limited else None


def _cgroup_folders(machine: Machine) -> list[str]:
    """Folders of this process's cgroup and of those above it (version 2), the nearest first."""
    own = ""
    for line in (machine.text("proc/self/cgroup") or "").splitlines():
        if line.startswith("0::"):
            own = line[3:].strip("/")
    parts = [part for part in own.split("/") if part and part != ".."]
    ways = ["/".join(parts[:length]) for length in range(len(parts), -1, -1)]
    return [f"sys/fs/cgroup/{way}".rstrip("/") for way in ways]
