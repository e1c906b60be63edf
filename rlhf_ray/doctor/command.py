"""The doctor's command: all looks at once, each with a deadline, and what they found."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rlhf_ray.config.errors import RequestError
from rlhf_ray.doctor.devices import look_at_gpus, look_at_network
from rlhf_ray.doctor.libraries import look_at_libraries, look_at_ray
from rlhf_ray.doctor.limits import look_at_disks, look_at_environment, look_at_limits
from rlhf_ray.doctor.memory import look_at_cpus, look_at_memory, look_at_shared_memory
from rlhf_ray.doctor.symptom import Machine, Severity, Symptom, output_of, slow

WORD = "doctor"
Look = Callable[[Machine], Iterable[Symptom]]

# In the order in which they are shown.
LOOKS: Mapping[str, Look] = {
    "GPUs": look_at_gpus,
    "CPUs": look_at_cpus,
    "memory": look_at_memory,
    "shared memory": look_at_shared_memory,
    "limits": look_at_limits,
    "disks": look_at_disks,
    "network": look_at_network,
    "libraries": look_at_libraries,
    "environment": look_at_environment,
    "Ray": look_at_ray,
}
# Longer than the deadlines of the programs that looks call.
_DEADLINE_S = 20.0


def run_doctor(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Look at this machine and say what was found.

    Args:
        arguments: none are known.
        say: shows a line.

    Returns:
        the exit status: 0, or 1 if something will end a run.

    Raises:
        RequestError: there are arguments.
    """
    if arguments:
        raise RequestError(f"doctor takes no arguments, and was given {' '.join(arguments)}")
    machine = Machine(root=Path("/"), environ=os.environ, output=output_of)
    findings = all_findings(machine, LOOKS, deadline_s=_DEADLINE_S)
    for finding in findings:
        say(str(finding))
    counts = {kind: sum(each.severity is kind for each in findings) for kind in Severity}
    say(
        f"{len(findings)} things: {counts[Severity.BROKEN]} will end runs, "
        f"{counts[Severity.SLOW]} will hurt some"
    )
    return 1 if counts[Severity.BROKEN] else 0


def all_findings(
    machine: Machine, looks: Mapping[str, Look], *, deadline_s: float
) -> list[Symptom]:
    """The findings of all looks, in their order; one that gives no answer in time is a finding.

    A file system of the network may never answer. Its thread is left behind, and ends with the
    process.
    """
    found: dict[str, list[Symptom]] = {}
    threads = {
        name: threading.Thread(target=_look, args=(name, look, machine, found), daemon=True)
        for name, look in looks.items()
    }
    end = time.monotonic() + deadline_s
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, end - time.monotonic()))
    findings: list[Symptom] = []
    for name in looks:
        # A copy: a thread that is late may still answer.
        findings += found.get(name) or [
            slow(
                f"{name}: no answer within {deadline_s:g} s",
                "a file system of the network or a driver hangs: a run would, too",
            )
        ]
    return findings


def _look(name: str, look: Look, machine: Machine, found: dict[str, list[Symptom]]) -> None:
    try:
        found[name] = list(look(machine))
    except Exception as error:  # noqa: BLE001 - the others are worth showing
        text = " ".join(f"{type(error).__name__}: {error}".split())
        found[name] = [slow(f"{name}: could not be looked at ({text})", "please report it")]
