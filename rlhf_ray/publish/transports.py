"""The table of weight transports, by the name that `publish.transport` chooses.

To add one: a file like `object_store.py`, a receiver like `generation.weights.receiver`, a row
here, and the name among the choices of `publish.transport`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.publish.base import WeightTransport
from rlhf_ray.publish.object_store import ENGINE_BACKEND, ObjectStoreTransport


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportEntry:
    """Both ends of a transport.

    Attributes:
        transport: moves the weights, called by the driver.
        engine_backend: name under which vLLM knows the engine's end.
        receiver_module: module of vLLM's end, imported inside vLLM's workers only.
        receiver_class: its `WeightTransferEngine` in that module.
    """

    transport: WeightTransport
    engine_backend: str
    receiver_module: str
    receiver_class: str


TRANSPORTS: dict[str, TransportEntry] = {
    "object_store": TransportEntry(
        transport=ObjectStoreTransport(),
        engine_backend=ENGINE_BACKEND,
        receiver_module="rlhf_ray.generation.weights.receiver",
        receiver_class="ObjectStoreReceiver",
    ),
}


def weight_transport(name: str) -> WeightTransport:
    """The transport that `publish.transport` names."""
    return TRANSPORTS[name].transport


def engine_backend(name: str) -> str:
    """The name of vLLM's weight-transfer backend for the transport that `name` chooses."""
    return TRANSPORTS[name].engine_backend
