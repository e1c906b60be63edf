"""Sender of a published LoRA adapter: from buckets to vLLM's LoRA layers.

vLLM loads adapters only from folders: a publish writes a folder to this node's temporary directory,
and vLLM's workers read it at once.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.publish.bucket import WeightBucket, unpack
from rlhf_ray.scratch_folder import scratch_folder

# There is only one adapter; vLLM's numbers start at 1.
_NAME, _NUMBER = "policy", 1


class AdapterSender:
    """Collects the buckets of a publish, then replaces the adapter in the engine.

    Every version has the same number, so that requests that run with the old adapter go on with the
    new one.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._tensors: dict[str, torch.Tensor] = {}
        self._open = ExitStack()
        self._root = self._open.enter_context(scratch_folder())
        # The adapter that requests must name; None until the first publish.
        self.adapter: LoRARequest | None = None

    async def begin(self) -> None:
        """Begin a publish; the base model's weights do not change."""
        self._tensors = {}

    async def abandon(self) -> None:
        """No-op: nothing of a publish is in the engine before its end."""

    async def send(self, bucket: WeightBucket) -> None:
        """Copy one bucket; its memory may be reused when this returns."""
        self._tensors |= {name: tensor.clone() for name, tensor in unpack(bucket)}

    async def finish(self, version: int) -> None:
        """Use the collected adapter as `version`.

        Raises:
            Exception: as vLLM raised it, for example for a layer that it cannot adapt.
        """
        folder = self._root / str(version)
        # In a thread: writing takes long enough to hold up the requests of this event loop.
        await asyncio.to_thread(_write, folder, self._tensors)
        self._tensors = {}
        # `load_inplace` makes vLLM read the folder although it knows an adapter of this number.
        request = LoRARequest(
            lora_name=_NAME, lora_int_id=_NUMBER, lora_path=str(folder), load_inplace=True
        )
        await self._llm.add_lora(request)
        await self._llm.update_weight_version(str(version))
        # Requests name the adapter without `load_inplace`: with it, every engine step would read
        # the folder again. The folder stays until the next publish, because vLLM may evict the
        # adapter and load it again.
        last = self.adapter
        self.adapter = LoRARequest(lora_name=_NAME, lora_int_id=_NUMBER, lora_path=str(folder))
        if last is not None and last.lora_path != str(folder):
            shutil.rmtree(last.lora_path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folders."""
        self._open.close()


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a folder in peft's format. The scale is in the weights already, so alpha equals r."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    r = max(tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name)
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": r,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in layers}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
