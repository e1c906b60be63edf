"""Receiver of published weights inside a vLLM worker process.

vLLM loads it through the entry point `vllm.general_plugins` and drives it through its
weight-transfer protocol: start, one update per bucket, finish. The bytes come through shared memory
(`segments.py`), so that one copy serves all ranks of the engine.
"""

from __future__ import annotations

import logging
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

from rlhf_ray.generation.parent_watch import end_with_parent
from rlhf_ray.generation.weights.segments import open_segment
from rlhf_ray.publish.bucket import unpack_flat
from rlhf_ray.publish.transports import TRANSPORTS


@dataclass
class ReceiverInit(WeightTransferInitInfo):
    """Empty: nothing has to be set up, because every update names its segment."""


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """A bucket in a shared segment: path and size of the segment, fields of `WeightBucket`."""

    segment_path: str
    segment_bytes: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class ObjectStoreReceiver(WeightTransferEngine[ReceiverInit, BucketInfo]):
    """Loads buckets into a running model, also if its layers were repacked for the CPU."""

    init_info_cls = ReceiverInit
    update_info_cls = BucketInfo
    supports_draft_weight_update = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # At every reload vLLM 0.32 warns about each layer that has no weights (rotary embeddings,
        # tied heads). Weights that are really missing are found by the fidelity gate.
        logging.getLogger(finalize_layerwise_reload.__module__).setLevel(logging.ERROR)
        # Mapped once: a segment is used again for every publish.
        self._segments: dict[str, np.ndarray] = {}

    def init_transfer_engine(self, init_info: ReceiverInit) -> None:
        """Nothing to do: there is no connection."""

    def start_weight_update(self) -> None:
        """Give every layer its loadable form back: vLLM had repacked and emptied linear layers."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketInfo) -> None:
        """Load one bucket. The segment may be overwritten as soon as this returns."""
        flat = torch.from_numpy(self._segment(update_info))
        shapes = tuple(tuple(shape) for shape in update_info.shapes)
        weights = unpack_flat(flat, update_info.names, update_info.dtypes, shapes)
        model: Any = self.model
        model.load_weights(weights)
        _detach_waiting_layers(self.model, flat)

    def finish_weight_update(self) -> None:
        """Repack the layers that are not repacked yet; the model then uses the new weights."""
        finalize_layerwise_reload(self.model, self.model_config)
        _mend_tied_head(self.model, self.device)

    def shutdown(self) -> None:
        self._segments.clear()

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


def register() -> None:
    """Register all receivers with vLLM; called in every vLLM process, possibly more than once."""
    # vLLM 0.32 leaves its engine process running for ever if its parent is killed, and Ray kills an
    # actor that does not end by itself.
    end_with_parent()
    for entry in TRANSPORTS.values():
        if entry.engine_backend not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(
                entry.engine_backend, entry.receiver_module, entry.receiver_class
            )
