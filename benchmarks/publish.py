"""A publish by each transport with its parts, without the probe, in turns on one host.

    python -m benchmarks.publish MODEL REPEATS RESULT

One learner rank and one engine, as in the work. Every round opens each transport, publishes once
without measuring, which touches its buffers for the first time, and then twice.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.work import arguments, overrides, write_result
from rlhf_ray.cluster.roles.run_roles import resource_plan, run_roles
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.cluster.systems.rl import System, started_system
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.observe.startup import StartupClock
from rlhf_ray.publish.base import TransferSettings
from rlhf_ray.publish.transports import COLLECTIVE, IPC, OBJECT_STORE, TRANSPORTS

KINDS = (OBJECT_STORE, COLLECTIVE, IPC)
_NUM_MEASURED = 2


def main() -> None:
    model, repeats, result = arguments()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config([*overrides(model), f"output_dir={folder}"])
        with (
            connected(
                dashboard=False,
                deadlines=config.deadlines,
                error_log=Path(folder) / "error.log",
            ),
            started_system(
                run_roles(config),
                resource_plan(config),
                placement=config.placement,
                deadlines=config.deadlines,
                startup=StartupClock(follows=True),
            ) as system,
        ):
            measured = measure(config, system, repeats)
    write_result(result, measured)


def measure(config: Config, system: System, repeats: int) -> dict[str, list[float]]:
    """Seconds of every publish and of its parts, by transport."""
    measured: dict[str, list[float]] = {}
    version = 0
    for _ in range(repeats):
        for kind in KINDS:
            transport = TRANSPORTS[kind].make(system.supervisor, transfer(config))
            transport.open(system.learner, system.generators)
            for number in range(1 + _NUM_MEASURED):
                version += 1
                began = time.monotonic()
                transport.send(version)
                seconds = {"s": time.monotonic() - began} | parts(system)
                if number:
                    for part, value in seconds.items():
                        measured.setdefault(f"publish_{kind}_{part}", []).append(value)
            transport.close()
    return measured


def transfer(config: Config) -> TransferSettings:
    """Settings of a publish, as a run has them."""
    return TransferSettings(
        bucket_bytes=config.publish.bucket_bytes,
        phase="publish",
        timeout_s=config.deadlines.publish_s,
    )


def parts(system: System) -> dict[str, float]:
    """Seconds of the parts of the last publish, as the engine has measured them."""
    (seconds,) = system.supervisor.results(
        system.generators.update_seconds(), phase="publish", timeout_s=60.0
    )
    return {f"{part}_s": value for part, value in seconds.items()}


if __name__ == "__main__":
    main()
