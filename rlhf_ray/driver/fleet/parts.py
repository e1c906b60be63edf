"""The engines of a fleet, and who ends and starts them, as the fleet calls them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.driver.roles import SamplingEngines


class FleetEngines(SamplingEngines, Protocol):
    """The engines by their places. See `cluster.engines.group.GeneratorGroup`."""

    def of(self, engines: Sequence[int]) -> Any:
        """Some of them as they are now: engines, and receivers of weights."""
        ...

    def ping(self, engine: int) -> Call: ...


class EngineReplacements(Protocol):
    """Ends and starts engines. See `cluster.engines.replacement.Replacements`."""

    def fence(self, lost: MemberName) -> str: ...
    def begin(self, name: MemberName) -> None: ...
    def started(self) -> list[MemberName]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetSettings:
    """See `config.groups.runtime.RecoveryConfig`.

    Attributes:
        start_s: time in which a replacement must have started.
    """

    max_restarts: int
    min_engines: int
    silence_s: float
    start_s: float

    def refusal(self, *, num_restarts: int, num_left: int) -> str:
        """The reason why a run cannot bear another loss; "" if it can.

        Args:
            num_restarts: engines that it has replaced.
            num_left: engines with weights that would be left.
        """
        if num_restarts >= self.max_restarts:
            return f"the run has restarted recovery.max_restarts={self.max_restarts} engines"
        if num_left < self.min_engines:
            wanted = f"recovery.min_engines={self.min_engines}"
            return f"engines with weights that would be left: {num_left}, fewer than {wanted}"
        return ""


class RecoveryMetrics(Protocol):
    """The accounts of lost engines, step by step."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the time since the last call."""
        ...


class NoRecovery:
    """Null object of a run that every loss ends."""

    def metrics(self) -> dict[str, float]:
        return {}


NO_RECOVERY = NoRecovery()
