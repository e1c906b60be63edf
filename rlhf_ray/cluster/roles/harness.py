"""lm-evaluation-harness on one model, in the place of an engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, start_actors
from rlhf_ray.cluster.runtime.process import ActorProcess

if TYPE_CHECKING:
    from rlhf_ray.config.groups.generation import GenerationConfig
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.evaluation.harness_tasks import HarnessTasks


@dataclass(frozen=True, kw_only=True, slots=True)
class HarnessSettings:
    """Settings of the harness; see `generation.harness.TaskHarness`."""

    generation: GenerationConfig
    model: ModelConfig
    tasks: HarnessTasks
    seed: int


def harness_role(settings: HarnessSettings, engines: Resources) -> Role:
    """The harness, with the resources of one of the engines."""
    return Role(
        resources=replace(engines, role="lm_eval", num_actors=1),
        actor_class=HarnessActor,
        settings=lambda _: settings,
        start=start_actors,
    )


class HarnessActor(ActorProcess):
    """The harness on one model; see `generation.harness.TaskHarness`."""

    def __init__(self, settings: HarnessSettings) -> None:
        super().__init__()
        from rlhf_ray.generation.harness import TaskHarness

        self._worker = TaskHarness(
            generation=settings.generation,
            model=settings.model,
            tasks=settings.tasks,
            seed=settings.seed,
        )

    def start(self) -> None:
        self._worker.start()

    def run(self) -> dict[str, Any]:
        return self._worker.run()

    def close(self) -> None:
        self._worker.close()
