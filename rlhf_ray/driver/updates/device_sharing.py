"""Who has the devices: engines or learner."""

from __future__ import annotations

from typing import Protocol

from rlhf_ray.calls import Call, CallWaiter


class DeviceSharing(Protocol):
    """Called by the loop in this order, every step."""

    def begin_training(self) -> None:
        """The learner is about to compute."""
        ...

    def begin_publishing(self) -> None:
        """Weights are about to move: both sides need their memory."""
        ...

    def begin_generating(self) -> None:
        """The engines are about to sample."""
        ...


class DedicatedDevices:
    """Every role has devices of its own: there is nothing to hand over."""

    def begin_training(self) -> None: ...

    def begin_publishing(self) -> None: ...

    def begin_generating(self) -> None: ...


class SleepingRole(Protocol):
    """See `cluster.roles.generator.Generators`."""

    def sleep(self) -> list[Call]: ...
    def wake_up(self) -> list[Call]: ...


class OffloadingRole(Protocol):
    """See `cluster.roles.base.TrainedRanks`."""

    def offload_states(self) -> list[Call]: ...
    def reload_states(self) -> list[Call]: ...


class ColocatedDevices:
    """The hybrid engine: engines sleep while the trained roles compute, and the other way round.

    Without a GPU sleeping and offloading do nothing, and the order is the same.
    """

    def __init__(
        self,
        *,
        engines: SleepingRole,
        trained: tuple[OffloadingRole, ...],
        watch: CallWaiter,
        timeout_s: float,
    ) -> None:
        self._engines = engines
        self._trained = trained
        self._watch = watch
        self._timeout_s = timeout_s

    def begin_training(self) -> None:
        self._wait(self._engines.sleep(), "update")
        self._wait([call for role in self._trained for call in role.reload_states()], "update")

    def begin_publishing(self) -> None:
        self._wait(self._engines.wake_up(), "publish")

    def begin_generating(self) -> None:
        self._wait([call for role in self._trained for call in role.offload_states()], "publish")

    def _wait(self, calls: list[Call], phase: str) -> None:
        self._watch.results(calls, phase=phase, timeout_s=self._timeout_s)
