"""Receiver of published weights inside a vLLM worker process.

vLLM loads it through the entry point `vllm.general_plugins` and drives it through its
weight-transfer protocol: start, updates, finish. The bytes come in one of two ways. With the
transport `object_store` the engine's process passes buckets on through shared memory
(`publish/segments.py`), one update each, so that one copy serves all ranks of the engine. With a
transport that is a channel (`publish/channel.py`) each worker takes all buckets from the learner
itself, in one update.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
    UnquantizedFusedMoEMethod,
)
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlhf_ray.generation.engine_arguments import WEIGHT_BACKEND
from rlhf_ray.generation.parent_watch import end_with_parent
from rlhf_ray.publish.bucket import unpack_flat
from rlhf_ray.publish.channel import ChannelSettings, ReceiverEnd
from rlhf_ray.publish.plan import PlannedBucket, plan_buckets
from rlhf_ray.publish.segments import open_segment
from rlhf_ray.publish.transports import channel_ends


@dataclass
class ChannelInfo(WeightTransferInitInfo):
    """A channel to the learner: the fields of `ChannelSettings`, as vLLM's messages carry them."""

    kind: str
    name: str
    addresses: list[list[Any]]
    workers: list[int]
    first_worker: int
    specs: list[list[Any]]
    bucket_bytes: int
    timeout_s: float

    def settings(self) -> ChannelSettings:
        """The settings with their own types again: vLLM's messages turn tuples into lists."""
        return ChannelSettings(
            kind=self.kind,
            name=self.name,
            addresses=tuple((host, port) for host, port in self.addresses),
            workers=tuple(self.workers),
            first_worker=self.first_worker,
            specs=tuple((name, dtype, tuple(shape)) for name, dtype, shape in self.specs),
            bucket_bytes=self.bucket_bytes,
            timeout_s=self.timeout_s,
        )


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """A bucket in a shared segment: path and size of the segment, fields of `WeightBucket`."""

    segment_path: str
    segment_bytes: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


@dataclass
class ChannelUpdate(WeightTransferUpdateInfo):
    """All buckets of a publish through the channel, of which both ends know the plan."""


class WeightReceiver(WeightTransferEngine[ChannelInfo, BucketInfo | ChannelUpdate]):
    """Loads buckets into a running model, also if its layers were repacked for the CPU."""

    init_info_cls = ChannelInfo
    # The other kind of updates is told apart in `parse_update_info`.
    update_info_cls = BucketInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # At every reload vLLM 0.32 warns about each layer that has no weights (rotary embeddings,
        # tied heads). Weights that are really missing are found by the fidelity gate.
        logging.getLogger(finalize_layerwise_reload.__module__).setLevel(logging.ERROR)
        # Mapped once: a segment is used again for every publish.
        self._segments: dict[str, np.ndarray] = {}
        self._is_updating = False
        self._channel: ReceiverEnd | None = None
        self._plan: tuple[PlannedBucket, ...] = ()

    def init_transfer_engine(self, init_info: ChannelInfo) -> None:
        """Open a channel, in place of the one before.

        Raises:
            PeerLost: the learner or another worker did not come in time.
        """
        self._close_channel()
        settings = init_info.settings()
        self._plan = plan_buckets(settings.specs, settings.bucket_bytes)
        # With data parallelism within an engine, ranks are counted from 0 in every replica.
        parallel = self.parallel_config
        rank = parallel.data_parallel_index * parallel.world_size + parallel.rank
        ends = channel_ends(settings.kind)
        self._channel = ends.open_receiver(settings, settings.first_worker + rank, self.device)

    def parse_update_info(self, update_dict: dict[str, Any]) -> BucketInfo | ChannelUpdate:
        """The bucket that an update brings, or the word that a channel brings all of them."""
        return BucketInfo(**update_dict) if update_dict else ChannelUpdate()

    def start_weight_update(self) -> None:
        """Give every layer its loadable form back: vLLM had repacked and emptied linear layers."""
        if self._is_updating:
            # The last update failed half-way. vLLM 0.32 keeps the tensors of layers that had only a
            # part of theirs and would count them again; this ends the update for such layers, too.
            finalize_layerwise_reload(self.model, self.model_config)
        self._is_updating = True
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketInfo | ChannelUpdate) -> None:
        """Load one bucket, or all of the channel. Their memory may be overwritten afterwards.

        Raises:
            PeerLost: the learner or another worker has failed, ended, or was late.
        """
        if isinstance(update_info, BucketInfo):
            flat = torch.from_numpy(self._segment(update_info))
            shapes = tuple(tuple(shape) for shape in update_info.shapes)
            self._load(flat, unpack_flat(flat, update_info.names, update_info.dtypes, shapes))
        else:
            self._receive_all()

    def _receive_all(self) -> None:
        channel = self._channel
        assert channel is not None, "no channel was opened"
        try:
            channel.begin(self._plan)
            for bucket in self._plan:
                flat = channel.take(bucket)
                self._load(flat, bucket.views(flat))
                channel.release()
            channel.finish()
        except BaseException:
            # At once: the learner and the other workers would wait for this one.
            channel.drop()
            raise

    def _load(self, flat: torch.Tensor, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        model: Any = self.model
        model.load_weights(weights)
        _detach_waiting_layers(self.model, flat)

    def finish_weight_update(self) -> None:
        """Repack the layers that are not repacked yet; the model then uses the new weights."""
        finalize_layerwise_reload(self.model, self.model_config)
        self._is_updating = False
        _mend_tied_head(self.model, self.device)
        _mend_experts(self.model, self.device)

    def shutdown(self) -> None:
        """Close the channel; the engine goes on without one."""
        self._segments.clear()
        self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _segment(self, update_info: BucketInfo) -> np.ndarray:
        # The sender replaces a segment that is too small. The new path has a descriptor's number
        # and may be the same as the old one, but the size differs.
        known = self._segments.get(update_info.segment_path)
        if known is None or known.shape[0] != update_info.segment_bytes:
            known = open_segment(update_info.segment_path, update_info.segment_bytes)
            self._segments[update_info.segment_path] = known
        return known


def _detach_waiting_layers(model: nn.Module, flat: torch.Tensor) -> None:
    """Clone the tensors of the segment `flat` that the layerwise reload still holds.

    vLLM 0.32 keeps the tensors of a layer (the three of a fused q, k, v, for example) until all of
    them have arrived, and copies them only then. If they are spread over two buckets, a later
    bucket would overwrite the bytes of the first.
    """
    storage = flat.untyped_storage().data_ptr()
    for layer in model.modules():
        for _, bound in get_layerwise_info(layer).loaded_weights:
            for name, value in bound.arguments.items():
                if (
                    isinstance(value, torch.Tensor)
                    and not value.is_meta
                    and value.untyped_storage().data_ptr() == storage
                ):
                    bound.arguments[name] = value.clone()


def _mend_tied_head(model: nn.Module, device: torch.device) -> None:
    """Pack a tied `lm_head` again from the embedding that it shares.

    vLLM 0.32.0 on CPU, any model with tied embeddings: a layerwise reload loads no weight for the
    head, which keeps the packed copy of the OLD embedding, without an error. This can go when
    `finalize_layerwise_reload` repacks tied heads; the fidelity gate's test, which disables this
    function, will then fail.
    """
    if device.type != "cpu":
        return
    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def _mend_experts(model: nn.Module, device: torch.device) -> None:
    """Pack the experts of a mixture again from the weights that were loaded.

    vLLM 0.32.0 on CPU, unquantized_fused_moe_method.py: experts are packed for the CPU at the first
    load only. A reload copies plain weights over the packed ones, and the engine computes
    log-probabilities that are nats off, without an error. This can go when a reload packs experts;
    the fidelity gate's test of a mixture, which disables this function, will then fail.
    """
    if device.type != "cpu":
        return
    for layer in model.modules():
        if isinstance(layer, RoutedExperts) and isinstance(
            layer.quant_method, UnquantizedFusedMoEMethod
        ):
            kernel: Any = layer.quant_method.moe_kernel
            kernel.fused_experts.process_weights_after_loading(layer)


def register() -> None:
    """Register the receiver with vLLM; called in every vLLM process, possibly more than once."""
    # vLLM 0.32 leaves its engine process running for ever if its parent is killed, and Ray kills an
    # actor that does not end by itself.
    end_with_parent()
    if WEIGHT_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(WEIGHT_BACKEND, WeightReceiver)
