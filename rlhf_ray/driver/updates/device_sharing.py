"""Device sharing between engines and learner."""

from __future__ import annotations

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.roles import GeneratorRole, LearnerRole
from rlhf_ray.publish.base import EnginePart, LearnerPart


class DedicatedDevices:
    """Null object for `placement.strategy=disaggregated`: every role has its own devices."""

    def begin_training(self) -> None: ...

    def begin_publishing(self) -> None: ...

    def begin_generating(self) -> None: ...


class ColocatedDevices:
    """The hybrid engine: engines sleep while the trained roles compute, and the reverse.

    On the devices are, by phase, in the order of the three methods:

    - training: all of the learner;
    - publishing: the weights of both;
    - generating: all of the engines.

    Whatever must leave does so before the other side comes, so that no phase needs memory for more.
    A sleeping engine forgets its weights: after `begin_training` only a publish leads back to
    `begin_generating`. At the start of a run the engines sleep, and the learner is on the devices.

    Without a GPU, sleeping and offloading do nothing, and the order is the same.
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
        """Leave room for the weights of both sides, and for nothing else."""
        self._offload(LearnerPart.STATES)
        self._wait(self._engines.wake_up(EnginePart.WEIGHTS), "publish")

    def begin_generating(self) -> None:
        """Hand the devices over to the engines, which have new weights."""
        self._offload(LearnerPart.WEIGHTS)
        self._wait(self._engines.wake_up(EnginePart.CACHE), "publish")

    def _offload(self, part: LearnerPart) -> None:
        calls = [call for role in self._trained for call in role.offload_states(part)]
        self._wait(calls, "publish")

    def _wait(self, calls: list[Call], phase: str) -> None:
        self._waiter.results(calls, phase=phase, timeout_s=self._timeout_s)


DeviceSharing = DedicatedDevices | ColocatedDevices
