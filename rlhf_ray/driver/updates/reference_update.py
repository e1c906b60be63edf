"""Updates of the reference from the policy."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import LearnerRole, ReferenceRole
from rlhf_ray.publish.base import TransferSettings, WeightTransport


class NoReferenceUpdate:
    """Null object of a run without a reference, or with a reference that never moves."""

    def check(self) -> None: ...

    def update_if_due(self, step: int) -> dict[str, float]:
        del step
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceUpdateSettings:
    """Steps between two updates; bucket size and deadline of a transfer."""

    every_steps: int
    bucket_bytes: int
    timeout_s: float


class PeriodicReferenceUpdater:
    """Sends the policy's weights to the reference, which keeps an EMA of them.

    The updater has no state: the number of steps alone tells when the reference last moved.
    """

    def __init__(
        self,
        *,
        policy: LearnerRole,
        reference: ReferenceRole,
        transport: WeightTransport,
        waiter: CallWaiter,
        settings: ReferenceUpdateSettings,
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._transport = transport
        self._waiter = waiter
        self._every_steps = settings.every_steps
        self._transfer = TransferSettings(
            bucket_bytes=settings.bucket_bytes, phase="refresh", timeout_s=settings.timeout_s
        )

    def check(self) -> None:
        """Check before the first step that the reference can take the policy's weights.

        The first update may be thousands of steps away, too late to find out.

        Raises:
            RunFailed: names or shapes of the reference's weights differ from the policy's.
        """
        (shapes,) = self._wait([self._policy.weight_shapes()])
        self._wait(self._reference.check_weights(shapes))

    def update_if_due(self, step: int) -> dict[str, float]:
        """Update the reference after every `every_steps` steps.

        Returns:
            `reference/version`: steps that the policy had done at the last update; 0 before the
            first.

        Raises:
            RunFailed: a worker failed or was late.
        """
        since = step % self._every_steps
        if since == 0:
            self._transport.send(self._policy, self._reference, self._waiter, self._transfer)
            self._wait(self._reference.finish_update())
        return {"reference/version": float(step - since)}

    def _wait(self, calls: list[Call]) -> list:
        settings = self._transfer
        return self._waiter.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)


ReferenceUpdater = PeriodicReferenceUpdater | NoReferenceUpdate
