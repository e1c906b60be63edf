"""Standard tasks on one model, as a Ray actor in the place of an engine."""

from __future__ import annotations

from typing import Any

from rlhf_ray.cluster.runtime.process import ActorProcess


class HarnessActor(ActorProcess):
    """See `generation.harness.TaskHarness`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.generation.harness import TaskHarness

        self._worker = TaskHarness(**settings)

    def start(self) -> None:
        self._worker.start()

    def run(self) -> dict[str, Any]:
        return self._worker.run()

    def close(self) -> None:
        self._worker.close()
