"""The transport of weights in a started system."""

from __future__ import annotations

from rlhf_ray.cluster.systems.rl import System
from rlhf_ray.config.errors import RequestError
from rlhf_ray.publish.base import TransferSettings, WeightTransport
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.transports import IPC, TRANSPORTS, Placed, chosen_transport
from rlhf_ray.stages.rl.engines import RunEngines
from rlhf_ray.stages.rl.settings import RlSettings


def open_transport(settings: RlSettings, system: System, engines: RunEngines) -> WeightTransport:
    """Choose the transport from the learner to the engines, and connect its ends.

    Raises:
        RequestError: this transport cannot reach the engines where they are.
        RunFailed: the ends did not connect.
    """
    learner, generators = system.learner, system.generators
    num_nodes = len(learner.nodes | generators.nodes)
    placed = Placed(
        num_nodes=num_nodes,
        learner_gpus=settings.learner_gpus,
        engine_gpus=settings.engine_gpus,
        is_colocated=settings.is_colocated,
        sends_adapter=settings.publishes_adapter,
    )
    name = chosen_transport(settings.publish.transport, placed)
    if name == IPC and num_nodes > 1 and not settings.engine_gpus:
        raise RequestError(
            f"publish.transport=ipc: learner and engines share the memory of one machine, but they "
            f"were placed on {num_nodes} nodes; set publish.transport=collective"
        )
    transport = TRANSPORTS[name].make(system.supervisor, _transfer(settings, "publish"))
    return engines.following(transport, system)


def open_reference_transport(settings: RlSettings, system: System) -> WeightTransport:
    """The transport to a reference that moves: always references to buckets.

    A reference moves seldom and its ranks keep a part of each weight each, so that they have no end
    of a channel.
    """
    assert system.reference is not None
    transport = ObjectStoreTransport(system.supervisor, _transfer(settings, "refresh"))
    transport.open(system.learner, system.reference)
    return transport


def _transfer(settings: RlSettings, phase: str) -> TransferSettings:
    return TransferSettings(
        bucket_bytes=settings.publish.bucket_bytes,
        phase=phase,
        timeout_s=settings.deadlines.publish_s,
    )
