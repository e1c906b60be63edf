"""Looks at limits of this process, disks, and environment variables."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rlhf_ray.doctor.symptom import Machine, Symptom, broken, fine, slow

_GB = 1000**3
_FEW_FILES, _VERY_FEW_FILES = 65_536, 4_096
_FEW_THREADS = 8_192
_LITTLE_DISK, _VERY_LITTLE_DISK = 50 * _GB, 2 * _GB
# A socket of Ray lies in TMPDIR/ray/session_.../sockets/plasma_store; Linux allows 107 bytes.
_LONGEST_TMP = 40

# Variables that hurt when they are set: a sentence, and what to do.
_VARIABLES: dict[str, tuple[str, str]] = {
    "NCCL_P2P_DISABLE": (
        "GPUs of a node talk through the host",
        "unset it, unless NCCL hangs without it",
    ),
    "NCCL_IB_DISABLE": (
        "nodes talk over TCP instead of InfiniBand",
        "unset it, unless there is no InfiniBand",
    ),
    "NCCL_DEBUG": ("NCCL writes many lines", "unset it after the search for a fault"),
    "CUDA_LAUNCH_BLOCKING": ("every kernel is waited for", "unset it"),
    "LD_PRELOAD": ("every process loads another library first", "unset it if runs crash"),
    "PYTHONHOME": ("Python looks for its libraries elsewhere", "unset it"),
    "VLLM_USE_V1": ("vLLM no longer reads it", "unset it"),
    "RAY_ADDRESS": (
        "runs join that cluster instead of starting a local Ray",
        "unset it for a run on this machine alone",
    ),
    "HF_HUB_OFFLINE": (
        "models and data sets come from the cache alone",
        "unset it if something is missing",
    ),
}
_HARMLESS = ("", "0", "false", "WARN", "VERSION")


def look_at_limits(machine: Machine) -> Iterator[Symptom]:
    """Open files, threads and locked memory."""
    files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"open files: at most {_words(files)}"
    is_free = most_files < 0 or most_files >= _FEW_FILES
    raise_it = (
        f"ulimit -n {_FEW_FILES}"
        if is_free
        else f"raise the hard limit of {most_files:,} in limits.conf, or docker run --ulimit "
        f"nofile={_FEW_FILES}"
    )
    if 0 < files < _VERY_FEW_FILES:
        yield broken(words, f"Ray opens a socket for every actor: {raise_it}")
    elif 0 < files < _FEW_FILES:
        yield slow(words, f"runs with many workers need {_FEW_FILES:,}: {raise_it}")
    else:
        yield fine(words)
    threads, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if 0 < threads < _FEW_THREADS:
        yield slow(
            f"threads: at most {threads} of this user",
            f"each worker has a hundred: ulimit -u {_FEW_THREADS} or more",
        )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked >= 0 and machine.paths("sys/class/infiniband/*"):
        yield broken(
            f"locked memory: at most {locked / 2**20:.0f} MiB, and there is InfiniBand",
            "RDMA registers GiB: ulimit -l unlimited (docker run --ulimit memlock=-1)",
        )


def look_at_disks(machine: Machine) -> Iterator[Symptom]:
    """Space and inodes of the folders that runs write to."""
    environ = machine.environ
    home = environ.get("HF_HOME") or f"{environ.get('HOME', '~')}/.cache/huggingface"
    places = {
        "here (output_dir)": Path.cwd(),
        "temporary files, Ray's logs and spilled objects": Path(tempfile.gettempdir()),
        "the hub's cache (HF_HOME)": Path(home).expanduser(),
    }
    for name, path in places.items():
        yield _disk(name, path)
    tmp = environ.get("TMPDIR") or tempfile.gettempdir()
    if len(tmp) > _LONGEST_TMP:
        yield broken(
            f"TMPDIR: {tmp} has {len(tmp)} characters",
            "Ray's sockets lie below it, and Linux allows 107 characters of their paths: set "
            "TMPDIR to a shorter folder",
        )


def _disk(name: str, path: Path) -> Symptom:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    try:
        usage, inodes = shutil.disk_usage(there), os.statvfs(there)
    except OSError as error:
        return broken(f"disk of {path}: {error.strerror}", f"name another folder for {name}")
    words = f"disk of {path}: {usage.free / _GB:.1f} of {usage.total / _GB:.1f} GB free, {name}"
    advice = "remove old outputs and checkpoints, or name a folder on a larger disk"
    if not os.access(there, os.W_OK):
        return broken(f"disk of {path}: cannot be written, {name}", "name another folder")
    if usage.free < _VERY_LITTLE_DISK or (inodes.f_files and inodes.f_favail == 0):
        return broken(words, advice)
    return slow(words, advice) if usage.free < _LITTLE_DISK else fine(words)


def look_at_environment(machine: Machine) -> Iterator[Symptom]:
    """Variables that change runs without a word. Values of proxies are not shown."""
    found = False
    for name, (what, advice) in _VARIABLES.items():
        value = machine.environ.get(name, "")
        if value not in _HARMLESS:
            found = True
            yield slow(f"{name}={value}: {what}", advice)
    if machine.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        found = True
        yield slow("CUDA_VISIBLE_DEVICES is empty: no GPU is seen", "unset it")
    proxies = [n for n in ("http_proxy", "HTTP_PROXY", "ALL_PROXY") if machine.environ.get(n)]
    excepted = machine.environ.get("no_proxy") or machine.environ.get("NO_PROXY") or ""
    if proxies and "localhost" not in excepted and "127.0.0.1" not in excepted:
        found = True
        yield slow(
            f"{proxies[0]} is set, and no_proxy does not name localhost",
            "requests between processes of this machine would go to the proxy: export "
            "no_proxy=localhost,127.0.0.1 with the nodes of the cluster",
        )
    if not found:
        yield fine("environment: no variable that is known to hurt")


def _words(number: int) -> str:
    return "unlimited" if number < 0 else f"{number:,}"
