"""An adapter that is published by itself: from buckets to vLLM's LoRA layers.

vLLM takes adapters from folders alone: a publish writes one to the temporary folder of this node,
and vLLM's workers read it at once.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from rlhf_ray.publish.bucket import WeightBucket, unpack

# The only one; vLLM counts from 1.
_NAME, _NUMBER = "policy", 1


class AdapterSender:
    """Collects the buckets of a publish, and puts their adapter in the place of the last one.

    Requests that were started with `adapter` go on with the new one: it has the same number.
    """

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._tensors: dict[str, torch.Tensor] = {}
        self._root = Path(tempfile.mkdtemp(prefix="rlhf_ray_adapter_"))
        # What requests have to name; nothing until the first publish.
        self.adapter: LoRARequest | None = None

    async def begin(self) -> None:
        """A publish begins: the model's own weights stay as they are."""
        self._tensors = {}

    async def send(self, bucket: WeightBucket) -> None:
        """Take over one bucket; its memory may be reused when this returns."""
        self._tensors |= {name: tensor.clone() for name, tensor in unpack(bucket)}

    async def finish(self, version: int) -> None:
        """Use the adapter, and call it `version`.

        Raises:
            Exception: as vLLM raised it, for instance for a layer that it applies no adapter to.
        """
        folder = self._root / str(version)
        await asyncio.to_thread(_write, folder, self._tensors)
        self._tensors = {}
        request = LoRARequest(
            lora_name=_NAME, lora_int_id=_NUMBER, lora_path=str(folder), load_inplace=True
        )
        await self._llm.add_lora(request)
        await self._llm.update_weight_version(str(version))
        # Without `load_inplace`, with which every engine step would read it again. The folder
        # stays: vLLM may drop an adapter and read it again.
        last = self.adapter
        self.adapter = LoRARequest(lora_name=_NAME, lora_int_id=_NUMBER, lora_path=str(folder))
        if last is not None and last.lora_path != str(folder):
            shutil.rmtree(last.lora_path, ignore_errors=True)

    def close(self) -> None:
        shutil.rmtree(self._root, ignore_errors=True)


def _write(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """As peft does: weights whose product is what is added, so that alpha is r."""
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
