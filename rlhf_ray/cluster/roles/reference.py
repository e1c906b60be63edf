"""The reference: actor and facade."""

from __future__ import annotations

from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import CheckpointedActor, CheckpointedGroup, call_of


class ReferenceGroup(CheckpointedGroup):
    """All ranks of the reference. It takes weights as engines do, where it follows the policy."""

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> list[Call]:
        """Fails where the reference could not take weights of these names and shapes."""
        return [call_of(m, m.handle.check_weights.remote(shapes)) for m in self._members]

    def begin_update(self) -> list[Call]:
        return [call_of(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """`bucket`: a reference, as `LearnerGroup.weight_buckets` gives them."""
        return [call_of(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self) -> list[Call]:
        return [call_of(m, m.handle.finish_update.remote()) for m in self._members]


class ReferenceActor(CheckpointedActor):
    """One rank of the reference."""

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reference import Reference as Worker

        self._worker = Worker(**settings)

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._worker.check_weights(shapes)

    def begin_update(self) -> None:
        self._worker.begin_update()

    def load_bucket(self, bucket: Any) -> None:
        self._worker.load_bucket(bucket)

    def finish_update(self) -> None:
        self._worker.finish_update()
