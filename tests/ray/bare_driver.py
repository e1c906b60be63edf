"""A driver without models: connects, starts a worker, waits for a call, as a run does.

python -m tests.ray.bare_driver FOLDER RAY_S SECONDS
"""

from __future__ import annotations

from rlhf_ray.interrupts import EXIT_SIGNALS, EndOnSignal, Interrupted, begin_command, leave

if __name__ == "__main__":
    EndOnSignal(at_once=True).install(*EXIT_SIGNALS)

import sys
import time
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError

from rlhf_ray.cluster.runtime.ray_processes import ray_processes
from rlhf_ray.cluster.runtime.session import connected
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.runtime import DeadlineConfig


@ray.remote(num_cpus=0.1)
class Worker:
    def answer(self, after_s: float) -> None:
        time.sleep(after_s)


def main(folder: Path, ray_s: float, seconds: float) -> int:
    begin_command()
    try:
        print("connecting", flush=True)
        with connected(
            dashboard=False,
            deadlines=DeadlineConfig(ray_s=ray_s),
            error_log=folder / "error.log",
        ):
            worker = Worker.remote()
            ray.get(worker.answer.remote(0), timeout=120)
            for process in ray_processes():
                print(f"{process.title}: {process.process.pid}", flush=True)
            print("ready", flush=True)
            try:
                ray.get(worker.answer.remote(1000), timeout=seconds)
            except GetTimeoutError:
                print("ending", flush=True)
            except RayError as error:
                raise RunFailed("the worker died") from error
        print("ended", flush=True)
    except RequestError as error:
        print(f"refused: {error}", flush=True)
        return 2
    except RunFailed as error:
        print(f"failed: {error}", flush=True)
        return 1
    except Interrupted as end:
        print(f"ended by {end.title}", flush=True)
        return 128 + end.number
    return 0


if __name__ == "__main__":
    leave(main(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
