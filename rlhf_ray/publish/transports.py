"""The table of weight transports, by the name that `publish.transport` chooses.

To add one: a file like `object_store.py`, or the two ends of a channel like `group.py`; a row
here; and the name among the choices of `publish.transport`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import CallWaiter
from rlhf_ray.publish.base import TransferSettings, WeightTransport
from rlhf_ray.publish.channel_transport import ChannelTransport
from rlhf_ray.publish.object_store import ObjectStoreTransport

AUTO, OBJECT_STORE, COLLECTIVE, IPC = "auto", "object_store", "collective", "ipc"


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportEntry:
    """One way of moving weights.

    Attributes:
        make: makes the driver's part, which tells the ends to move the weights.
        ends: module with `open_sender` and `open_receiver`, for a transport that is a channel
            between learner and engines. It imports torch, so only workers import it.
    """

    make: Callable[[CallWaiter, TransferSettings], WeightTransport]
    ends: str | None = None


def _channel(kind: str, ends: str) -> TransportEntry:
    return TransportEntry(
        make=lambda waiter, settings: ChannelTransport(kind, waiter, settings), ends=ends
    )


TRANSPORTS: dict[str, TransportEntry] = {
    OBJECT_STORE: TransportEntry(make=ObjectStoreTransport),
    COLLECTIVE: _channel(COLLECTIVE, "rlhf_ray.publish.group"),
    IPC: _channel(IPC, "rlhf_ray.publish.shared_memory"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Facts of a started run that decide which transport is best.

    Attributes:
        num_nodes: nodes with a learner rank or an engine.
        learner_gpus, engine_gpus: GPUs of a learner rank and of an engine worker; 0 on CPUs.
        is_colocated: learner ranks and engine workers use the same GPUs or CPUs in turn.
        sends_adapter: an adapter is published alone.
    """

    num_nodes: int
    learner_gpus: float
    engine_gpus: float
    is_colocated: bool
    sends_adapter: bool


def chosen_transport(name: str, placed: Placed) -> str:
    """The transport that `publish.transport` names; `auto` takes the one with the fewest copies.

    An adapter goes by the object store: it is small, and vLLM reads it from a folder anyway.
    """
    if name != AUTO:
        return name
    gpus = (placed.learner_gpus, placed.engine_gpus)
    if placed.sends_adapter or (gpus[0] > 0) != (gpus[1] > 0):
        return OBJECT_STORE
    on_gpus = min(gpus) > 0
    # On GPUs every worker shares memory with the rank on its own GPU, wherever the others are.
    if placed.is_colocated and (on_gpus or placed.num_nodes == 1):
        return IPC
    if on_gpus:
        # With parts of GPUs two members may be on one GPU, which NCCL refuses.
        return COLLECTIVE if min(gpus) >= 1 else OBJECT_STORE
    return COLLECTIVE if placed.num_nodes > 1 else OBJECT_STORE


def channel_ends(kind: str) -> Any:
    """The module with both ends of a channel; imports torch."""
    ends = TRANSPORTS[kind].ends
    assert ends is not None, f"{kind} is no channel"
    return importlib.import_module(ends)
