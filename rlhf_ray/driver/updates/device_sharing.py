"""Device sharing between engines and learner."""

from __future__ import annotations

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import GeneratorRole, LearnerRole


class DedicatedDevices:
    """Null object for `placement.strategy=disaggregated`: every role has its own devices."""

    def begin_training(self) -> None: ...

    def begin_publishing(self) -> None: ...

    def begin_generating(self) -> None: ...


class ColocatedDevices:
    """The hybrid engine: engines sleep while the trained roles compute, and the reverse.

    The loop calls the three methods in this order, every step. Without a GPU, sleeping and
    offloading do nothing, and the order is the same.
    """

    def __init__(
        self,
        *,
        engines: GeneratorRole,
        trained: tuple[LearnerRole, ...],
        waiter: CallWaiter,
        timeout_s: float,
    ) -> None:
        self._engines = engines
        self._trained = trained
        self._waiter = waiter
        self._timeout_s = timeout_s

    def begin_training(self) -> None:
        """Hand the devices over to the learner."""
        self._wait(self._engines.sleep(), "update")
        self._wait([call for role in self._trained for call in role.reload_states()], "update")

    def begin_publishing(self) -> None:
        """Prepare for moving weights, which both sides need memory for."""
        self._wait(self._engines.wake_up(), "publish")

    def begin_generating(self) -> None:
        """Hand the devices over to the engines."""
        self._wait([call for role in self._trained for call in role.offload_states()], "publish")

    def _wait(self, calls: list[Call], phase: str) -> None:
        self._waiter.results(calls, phase=phase, timeout_s=self._timeout_s)


DeviceSharing = DedicatedDevices | ColocatedDevices
