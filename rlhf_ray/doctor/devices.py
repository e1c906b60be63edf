"""Looks at GPUs and at the network, through nvidia-smi and /sys."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Iterator

from rlhf_ray.doctor.symptom import Machine, Symptom, broken, fine, slow

_SMI_S = 8.0
_FIELDS = (
    *("name", "memory.total", "memory.used", "driver_version", "compute_mode", "mig.mode.current"),
    *("ecc.errors.uncorrected.volatile.total", "clocks_throttle_reasons.active", "power.limit"),
)
_USED_MIB = 1024
# Bits of the throttle reasons that mean heat or power that breaks the clocks: slowdown by hardware.
_HARDWARE_SLOWDOWN = 0x8 | 0x40 | 0x80
_VIRTUAL = ("lo", "docker", "veth", "br-", "cali", "flannel", "cni", "virbr", "tun", "dummy")


def look_at_gpus(machine: Machine) -> Iterator[Symptom]:
    """GPUs by name, and each one that is used, broken or slowed down."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    listed = machine.output(command, _SMI_S)
    if listed is None:
        yield _without_smi(machine)
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line]
    rows = [row for row in rows if len(row) == len(_FIELDS)]
    if not rows:
        yield broken("GPUs: nvidia-smi lists none", "look at dmesg for errors of the driver")
        return
    for (name, memory), count in Counter((row[0], row[1]) for row in rows).items():
        yield fine(f"GPUs: {count} x {name}, {_gib(memory)} GiB, driver {rows[0][3]}")
    if len({row[0] for row in rows}) > 1:
        yield slow(
            "GPUs: of several kinds", "ranks wait for the slowest: choose with CUDA_VISIBLE_DEVICES"
        )
    for index, row in enumerate(rows):
        yield from _of_gpu(index, dict(zip(_FIELDS, row, strict=True)))


def _without_smi(machine: Machine) -> Symptom:
    if machine.paths("dev/nvidia[0-9]*") or machine.paths("proc/driver/nvidia/gpus/*"):
        return broken(
            "GPUs: there are devices of NVIDIA, and nvidia-smi does not answer",
            "the driver hangs or does not fit (dmesg says which), or the container was started "
            "without --gpus all",
        )
    return fine("GPUs: none; runs use the CPU (generation=cpu training=cpu)")


def _of_gpu(index: int, gpu: dict[str, str]) -> Iterator[Symptom]:
    used = gpu["memory.used"]
    if used.isdigit() and int(used) > _USED_MIB:
        yield slow(
            f"GPU {index}: {_gib(used)} GiB are used by something else",
            "vLLM counts free memory when it starts, and ends if its share is not free: find the "
            "process with nvidia-smi, or leave the GPU out of CUDA_VISIBLE_DEVICES",
        )
    if gpu["compute_mode"] in ("Exclusive_Process", "Prohibited"):
        yield broken(
            f"GPU {index}: compute mode {gpu['compute_mode']}",
            "roles that share a GPU cannot start: nvidia-smi -c DEFAULT, by an administrator",
        )
    if gpu["mig.mode.current"] == "Enabled":
        yield slow(
            f"GPU {index}: is divided (MIG)",
            "slices have no links to each other: name one slice for each role, or use whole GPUs",
        )
    errors = gpu["ecc.errors.uncorrected.volatile.total"]
    if errors.isdigit() and int(errors):
        yield broken(
            f"GPU {index}: {errors} memory errors that were not corrected",
            "reset or replace it: results may be wrong, and processes on it end",
        )
    try:
        reasons = int(gpu["clocks_throttle_reasons.active"], 16)
    except ValueError:
        return
    if reasons & _HARDWARE_SLOWDOWN:
        yield slow(
            f"GPU {index}: its clocks are slowed down by heat or power",
            "every rank waits for it: look at cooling and power supply",
        )


def _gib(mib: str) -> str:
    return f"{int(mib) / 1024:.1f}" if mib.isdigit() else mib


def look_at_network(machine: Machine) -> Iterator[Symptom]:
    """Interfaces that are up, InfiniBand, and whether the name of this host is an address."""
    up: dict[str, str] = {}
    for path in machine.paths("sys/class/net/*"):
        folder = f"sys/class/net/{path.name}"
        if path.name.startswith(_VIRTUAL) or machine.text(f"{folder}/operstate") == "down":
            continue
        speed, mtu = machine.text(f"{folder}/speed"), machine.text(f"{folder}/mtu")
        known = f"{int(speed) / 1000:g} Gb/s, " if speed and speed.isdigit() else ""
        up[path.name] = f"{path.name} ({known}MTU {mtu})"
    ports = [
        f"{path.parts[-4]} {machine.text(str(path.relative_to(machine.root))) or ''}".strip()
        for path in machine.paths("sys/class/infiniband/*/ports/*/rate")
    ]
    words = f"network: {', '.join(up.values()) or 'only this machine'}"
    if len(up) > 1:
        yield slow(
            words,
            "NCCL and gloo may choose different interfaces on different nodes: set "
            "placement.network_interface for runs on several nodes",
        )
    else:
        yield fine(words)
    if ports:
        yield fine(f"InfiniBand: {', '.join(ports)}")
        modules = machine.text("proc/modules") or ""
        if machine.paths("dev/nvidia[0-9]*") and "nvidia_peermem" not in modules:
            yield slow(
                "InfiniBand: the module nvidia_peermem is not loaded",
                "unless the driver exports its memory (dma-buf), data of GPUs go through the host: "
                "modprobe nvidia_peermem, by an administrator",
            )
    yield _own_name()


def _own_name() -> Symptom:
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0]
    except OSError:
        return slow(
            f"host name: {name} is no address",
            "other nodes and gloo look for it: add it to /etc/hosts or to the DNS",
        )
    return fine(f"host name: {name}, {address}")
