"""When the reference moves to the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.publish.transfer import BucketReceivers, BucketSource, TransferSettings, transfer

Shapes = dict[str, tuple[int, ...]]


class ReferenceUpdater(Protocol):
    """Called by the loop after every publish."""

    def update_if_due(self, step: int) -> dict[str, float]:
        """Move the reference where it is due after `step` steps; metrics."""
        ...


class FollowedRole(BucketSource, Protocol):
    """See `cluster.roles.learner.Learners`."""

    def weight_shapes(self) -> Call: ...


class FollowingRole(BucketReceivers, Protocol):
    """See `cluster.roles.reference.References`."""

    def check_weights(self, shapes: Shapes) -> list[Call]: ...
    def finish_update(self) -> list[Call]: ...


class NoReferenceUpdate:
    """There is no reference, or it stays where it is."""

    def check(self) -> None: ...

    def update_if_due(self, step: int) -> dict[str, float]:
        del step
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceUpdateSettings:
    """Steps between two refreshes, and how the weights travel."""

    every_steps: int
    bucket_bytes: int
    timeout_s: float


class PeriodicReferenceUpdater:
    """Gives the policy's weights to the reference, which takes its moving average of them.

    It has no state: which step the reference is of follows from the number of steps alone.
    """

    def __init__(
        self,
        *,
        policy: FollowedRole,
        reference: FollowingRole,
        watch: CallWaiter,
        settings: ReferenceUpdateSettings,
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._watch = watch
        self._every_steps = settings.every_steps
        self._transfer = TransferSettings(
            bucket_bytes=settings.bucket_bytes, phase="refresh", timeout_s=settings.timeout_s
        )

    def check(self) -> None:
        """Before the first step: the reference can follow, if only in a thousand steps.

        Raises:
            RunFailed: the reference has other weights than the policy.
        """
        (shapes,) = self._wait([self._policy.weight_shapes()])
        self._wait(self._reference.check_weights(shapes))

    def update_if_due(self, step: int) -> dict[str, float]:
        """Move the reference after every `every_steps` steps.

        Returns:
            `reference/version`: steps that the policy had done when the reference last moved; 0
            before it did.

        Raises:
            RunFailed: a worker failed or was late.
        """
        since = step % self._every_steps
        if since == 0:
            transfer(self._policy, self._reference, self._watch, self._transfer)
            self._wait(self._reference.finish_update())
        return {"reference/version": float(step - since)}

    def _wait(self, calls: list[Call]) -> list:
        settings = self._transfer
        return self._watch.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)
