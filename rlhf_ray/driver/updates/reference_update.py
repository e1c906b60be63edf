"""Updates of the reference from the policy."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import LearnerRole, ReferenceRole
from rlhf_ray.publish.base import WeightTransport


class NoReferenceUpdate:
    """Null object of a run without a reference, or with a reference that never moves."""

    def check(self) -> None: ...

    def update_if_due(self, step: int) -> dict[str, float]:
        del step
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceUpdateSettings:
    """Steps between two updates, and deadline of a check."""

    every_steps: int
    timeout_s: float


class PeriodicReferenceUpdater:
    """Sends the policy's weights to the reference, which keeps an EMA of them.

    Args:
        transport: opened from the policy to the reference.

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
        self._settings = settings

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
        since = step % self._settings.every_steps
        if since == 0:
            self._transport.send(step)
        return {"reference/version": float(step - since)}

    def _wait(self, calls: list[Call]) -> list:
        return self._waiter.results(calls, phase="refresh", timeout_s=self._settings.timeout_s)


ReferenceUpdater = PeriodicReferenceUpdater | NoReferenceUpdate
