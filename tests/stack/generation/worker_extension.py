"""Loaded by vLLM into its worker: what a test may break there, and what it may look at."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.generation.weights import receiver

_mend_tied_head = receiver._mend_tied_head
_mend_experts = receiver._mend_experts


class BreakableWorker:
    """Methods that a vLLM worker gets; `collective_rpc` calls them."""

    model_runner: Any

    def leave_out_mend(self, leave_out: bool) -> None:
        """Publish without the mend for tied embeddings, or with it again."""
        receiver._mend_tied_head = _nothing if leave_out else _mend_tied_head

    def leave_out_experts(self, leave_out: bool) -> None:
        """Publish without the mend for experts, or with it again."""
        receiver._mend_experts = _nothing if leave_out else _mend_experts

    def watch_loads(self, break_at: int = -1, how: str = "") -> None:
        """Note a digest of every tensor that is loaded from now on.

        Args:
            break_at: bucket, counted from here, at which the worker breaks.
            how: "kill" or "stop" this process, or "refuse" to load.
        """
        model = self.model_runner.model
        self._digests: dict[str, str] = {}
        number = -1
        load_weights = type(model).load_weights

        def load(weights: Iterable[tuple[str, Tensor]]) -> Any:
            nonlocal number
            number += 1
            if number == break_at:
                _break(how)
            return load_weights(model, self._noted(weights))

        model.load_weights = load

    def loaded(self) -> dict[str, str]:
        """Digests since `watch_loads`, by name."""
        return self._digests

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._digests[name] = digest(tensor)
            yield name, tensor


def digest(tensor: Tensor) -> str:
    """Hash of the bytes of a tensor, and its type and shape in words."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    hashed = hashlib.sha256(flat.numpy().tobytes()).hexdigest()[:16]
    return f"{hashed} {tensor.dtype} {tuple(tensor.shape)}"


def _break(how: str) -> None:
    if how == "refuse":
        raise ValueError("the worker refuses this bucket")
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)


def _nothing(*_: nn.Module) -> None:
    pass
