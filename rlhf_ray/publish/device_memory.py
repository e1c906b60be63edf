"""GPU memory that a learner rank shares with the engine worker on the same GPU, by CUDA IPC."""

from __future__ import annotations

import base64
import json
import pickle
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.publish.channel import PeerLost

# Place of the device's index among the arguments of torch's `rebuild_cuda_tensor` (torch 2.13).
_DEVICE_ARGUMENT = 6


class DeviceMemory:
    """Two buffers in turn, whose handles are made once; a larger bucket gets one for itself."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._device = device
        self._pair = [_Exported(num_bytes, device, is_kept=True) for _ in range(2)]
        self._large: list[_Exported] = []
        self._turn = 0

    def next(self, num_bytes: int) -> tuple[Tensor, str]:
        """See `shared_memory.SharedMemory.next`."""
        exported = self._pair[self._turn]
        self._turn = 1 - self._turn
        if num_bytes > exported.tensor.numel():
            exported = _Exported(num_bytes, self._device, is_kept=False)
            # At most two buckets are under way: older ones have been loaded.
            self._large = [*self._large[-1:], exported]
        return exported.tensor[:num_bytes], exported.text

    def close(self) -> None:
        """See `shared_memory.SharedMemory.close`."""
        self._pair, self._large = [], []


class _Exported:
    """A buffer and its handle as text."""

    def __init__(self, num_bytes: int, device: torch.device, *, is_kept: bool) -> None:
        from torch.multiprocessing.reductions import reduce_tensor

        self.tensor = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        _, arguments = reduce_tensor(self.tensor)
        handle = base64.b64encode(pickle.dumps(arguments)).decode()
        self.text = json.dumps({"gpu": gpu_uuid(device), "handle": handle, "kept": is_kept})


class MappedDeviceMemory:
    """Buffers of the learner rank on this worker's GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Mapped once: torch counts the users of a handle, and a handle is given to one user.
        self._kept: dict[str, Tensor] = {}

    def map(self, text: str) -> Tensor:
        """See `shared_memory.MappedMemory.map`."""
        if text in self._kept:
            return self._kept[text]
        place = json.loads(text)
        here = gpu_uuid(self._device)
        if place["gpu"] != here:
            raise PeerLost(
                f"the learner's memory is on the GPU {place['gpu']}, this worker's on {here}: "
                f"set publish.transport=object_store"
            )
        # Written by the learner of this run, read from its own store.
        tensor = rebuilt(list(pickle.loads(base64.b64decode(place["handle"]))), self._device)
        if place["kept"]:
            self._kept[text] = tensor
        return tensor

    def close(self) -> None:
        """See `shared_memory.MappedMemory.close`."""
        self._kept.clear()


def rebuilt(arguments: list[Any], device: torch.device) -> Tensor:
    """The tensor behind a handle, on this process' index of its GPU.

    The sender's index does not count here: each process numbers the GPUs that it sees.
    """
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    arguments[_DEVICE_ARGUMENT] = device.index
    return rebuild_cuda_tensor(*arguments)


def gpu_uuid(device: torch.device) -> str:
    """The GPU's identity, the same in every process."""
    return str(torch.cuda.get_device_properties(device).uuid)
