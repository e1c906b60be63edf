"""The roles that train as they are healed, who restarts them, and a run that heals nothing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.driver.updates.trainer import UpdateInputs

P = ParamSpec("P")
T = TypeVar("T")


class StatefulRole(Protocol):
    """All ranks of a role that trains. See `cluster.roles.checkpointed.TrainedGroup`."""

    def take_state(self) -> list[Call]:
        """Copy the state to memory outside of the ranks. Signal: bytes. Payload: the state."""
        ...

    def restore_state(self, states: Sequence[Any]) -> list[Call]:
        """Go on from the payloads of `take_state`, in the order of the ranks."""
        ...


class Restarts(Protocol):
    """Ends and starts the ranks of all roles that train. See `cluster.systems.restarts`."""

    @property
    def names(self) -> Collection[MemberName]:
        """The ranks that are there, or start."""
        ...

    def end(self) -> dict[MemberName, str]:
        """Kill all ranks; returns where each one was."""
        ...

    def start(self) -> None:
        """Start all ranks again in their places, with the weights of the model's files.

        Raises:
            RunFailed: one did not start.
        """
        ...


class SavedRoles(Protocol):
    """Checkpoints of the run, as a source of the roles' states. See `run_checkpoints`."""

    @property
    def newest(self) -> tuple[int, Path] | None:
        """Step and folder of the newest one; None without any."""
        ...

    def load_roles(self, folder: Path, names: Collection[str]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class HealingSettings:
    """See `config.groups.runtime.RecoveryConfig`.

    Attributes:
        restore_s: deadline of bringing a state back into the ranks.
        averages_reference: a reference keeps an average of the policy's weights, which a transfer
            that is done twice would count twice.
    """

    max_restarts: int
    snapshot_every: int
    restore_s: float
    averages_reference: bool = False


class NoHealing:
    """Null object of a run that the loss of a rank ends."""

    def do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return work(*args, **kwargs)

    def note(self, inputs: UpdateInputs) -> None:
        del inputs

    def step_done(self, step: int) -> None:
        del step


NO_HEALING = NoHealing()
