"""Adapters under the names of peft and vLLM: as a stream of weights, or as a folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from peft import TaskType
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.models.saving.write import noted
from rlhf_ray.training.engine.deepspeed_engine import TrainEngine
from rlhf_ray.training.engine.ranks import rank
from rlhf_ray.training.weights.lora import Adapter

# Folder inside a saved model's folder; `stages.trained_part` moves it out.
FOLDER = "adapter"
# Prefix that peft puts before the names of a model's weights.
_PREFIX = "base_model.model."


def scaled_weights(engine: TrainEngine, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """Whole weights of an adapter with its scale multiplied in, in a fixed order.

    All ranks must iterate to the end together. A tensor is valid until the next one is asked for.
    """
    for name, weight, scale in adapter.factors():
        with engine.gathered([weight]):
            yield _PREFIX + name, weight.detach() * scale


def write_adapter(
    engine: TrainEngine,
    adapter: Adapter,
    folder: Path,
    *,
    base: str,
    names: Callable[[str], str] = str,
    head: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Write a folder for `peft.PeftModel.from_pretrained`; rank 0 writes, all ranks call it.

    Args:
        base: path or name of the model that the adapter is for.
        names: maps names of the trained model's weights to names of the base model's.
        head: name and whole weight of a trained scalar head; it makes the model a classifier.
    """
    state = {}
    # Without the scale: peft multiplies by it, from the configuration that is saved here.
    for name, weight, _ in adapter.factors():
        with engine.gathered([weight]):
            state[_PREFIX + names(name)] = weight.detach().to("cpu", copy=True)
    config = copy.deepcopy(adapter.config)
    config.target_modules = sorted(adapter.config.target_modules or ())
    config.base_model_name_or_path, config.inference_mode = base, True
    for name, weight in head:
        state[_PREFIX + name] = weight.detach().to("cpu", copy=True)
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = [name.rpartition(".")[0]]
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        # The merged weights are written already: a failure here must not cost them.
        with noted(folder.parent, "the adapter"):
            save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
            config.save_pretrained(str(folder))
    torch.distributed.barrier()
