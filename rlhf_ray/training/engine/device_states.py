"""Parts of a trained engine that leave a GPU for host memory, and come back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.publish.base import LearnerPart

# DeepSpeed's names of what it can move (deepspeed 0.19.8, `OffloadStateTypeEnum`, a string each).
_MASTERS = ("hp_params", "optim_states")
_GRADIENTS = ("lp_grads", "contiguous_grad_buffer")
_WEIGHTS = ("lp_params",)


class DeviceStates:
    """Moves the states of a DeepSpeed engine at ZeRO-1, 2 or 3 between its device and the host.

    Args:
        engine: of DeepSpeed, with an optimizer and without offloaded parameters.
        keeps_masters: the weights in high precision stay with the others, for an EMA that is
            published: it finds its parts by them.
    """

    def __init__(self, engine: Any, *, keeps_masters: bool) -> None:
        self._engine = engine
        self._masters = _HostCopies()
        # deepspeed 0.19.8, stage3.py: `offload_states` wants DeepSpeed's FusedAdam for these two,
        # which is compiled on the spot. torch's AdamW has the same states. This can go when
        # DeepSpeed accepts it, as its stages 1 and 2 do.
        self._moves_masters = (
            engine.zero_optimization_stage() == 3 and not engine.zero_use_cpu_optimizer()
        )
        first = (*_MASTERS, *_GRADIENTS)
        if keeps_masters:
            first = tuple(name for name in first if name != "hp_params")
        self._by_part = {
            LearnerPart.STATES: first,
            LearnerPart.WEIGHTS: (*_MASTERS, *_GRADIENTS, *_WEIGHTS),
        }

    def offload(self, part: LearnerPart) -> None:
        """Move a part to the host, if it is not there; `WEIGHTS` includes what is still left."""
        names = self._by_part[part]
        if self._moves_masters:
            for name in _MASTERS:
                if name in names:
                    self._masters.offload(name, self._of_optimizer(name))
            names = tuple(name for name in names if name not in _MASTERS)
        self._engine.offload_states(include=names)
        if torch.cuda.is_available():
            # Activations of the last forward pass, too, which torch keeps for the next one.
            torch.cuda.empty_cache()

    def reload(self, device: torch.device) -> None:
        """Move everything back to the device."""
        self._masters.reload(device)
        self._engine.reload_states()

    def _of_optimizer(self, name: str) -> Iterator[Tensor]:
        """Tensors of a ZeRO-3 optimizer: its float32 weights, or the states of AdamW."""
        optimizer = self._engine.optimizer
        if name == "hp_params":
            yield from optimizer.fp32_partitioned_groups_flat
            return
        for states in optimizer.optimizer.state.values():
            # Not `step`, a number, which AdamW keeps on the host.
            yield from (value for value in states.values() if value.dim())


class _HostCopies:
    """Host memory for tensors that leave a device every step; it is pinned once, which is slow."""

    def __init__(self) -> None:
        self._hosts: dict[str, list[Tensor]] = {}
        self._away: dict[str, list[Tensor]] = {}

    def offload(self, name: str, tensors: Iterator[Tensor]) -> None:
        if name in self._away:
            return
        moved = list(tensors)
        if name not in self._hosts:
            pins = torch.cuda.is_available()
            self._hosts[name] = [
                torch.empty_like(tensor, device="cpu", pin_memory=pins) for tensor in moved
            ]
        hosts = self._hosts[name]
        for tensor, host in zip(moved, hosts, strict=True):
            host.copy_(tensor, non_blocking=True)
        _wait_for_copies()
        for tensor, host in zip(moved, hosts, strict=True):
            tensor.data = host
        self._away[name] = moved

    def reload(self, device: torch.device) -> None:
        for name, moved in self._away.items():
            for tensor, host in zip(moved, self._hosts[name], strict=True):
                tensor.data = torch.empty_like(host, device=device).copy_(host, non_blocking=True)
        _wait_for_copies()
        self._away.clear()


def _wait_for_copies() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
