"""The reference: a frozen model that the policy is compared with, or an EMA that follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import (
    Role,
    call_of,
    rank_resources,
    start_ranks,
)
from rlhf_ray.cluster.roles.checkpointed import CheckpointedActor, CheckpointedGroup

if TYPE_CHECKING:
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.training import ReferenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceSettings:
    """Settings of a rank; see `training.roles.reference.Reference`."""

    reference: ReferenceConfig
    model: ModelConfig
    temperature: float
    seed: int
    timeout_s: float
    decay: float
    over_support: bool


def reference_role(settings: ReferenceSettings) -> Role:
    """A reference with its own ranks."""
    return Role(
        resources=rank_resources("reference", settings.reference),
        actor_class=ReferenceActor,
        settings=lambda _: settings,
        start=start_ranks,
        ranks_per_sample=settings.reference.ranks_per_sample,
    )


class ReferenceActor(CheckpointedActor):
    """One rank of the reference."""

    def __init__(self, settings: ReferenceSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reference import Reference

        self._worker = Reference(
            reference=settings.reference,
            model=settings.model,
            temperature=settings.temperature,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
            decay=settings.decay,
            over_support=settings.over_support,
        )

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._worker.check_weights(shapes)

    def begin_update(self) -> None:
        self._worker.begin_update()

    def load_bucket(self, bucket: Any) -> None:
        self._worker.load_bucket(bucket)

    def finish_update(self) -> None:
        self._worker.finish_update()


class ReferenceGroup(CheckpointedGroup):
    """All ranks of the reference. It takes weights as engines do, where it follows the policy."""

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> list[Call]:
        """Fail where the reference cannot take weights of these names and shapes."""
        return [call_of(m, m.handle.check_weights.remote(shapes)) for m in self._members]

    def begin_update(self) -> list[Call]:
        return [call_of(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """Load a bucket; `bucket`: a reference, as `LearnerGroup.weight_buckets` gives them."""
        return [call_of(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self, version: int) -> list[Call]:
        """Use the weights that were loaded; a reference has no versions."""
        del version
        return [call_of(m, m.handle.finish_update.remote()) for m in self._members]
