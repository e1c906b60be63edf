"""Low-rank adapters: put on a model, switched off for a while, merged, written. The home of peft.

`inject_adapter_in_model` wraps layers in place: the model keeps its class, and the names of a
wrapped layer's weights become `NAME.base_layer.weight`, `NAME.lora_A.default.weight` and
`NAME.lora_B.default.weight`. Outside of training a model has none of these names
(`weights.named_weights`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import TaskType, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.lora import ALL_LINEAR, LoraConfig

# What peft calls the only adapter of a model.
_NAME = "default"
# What stands between the name of a layer with an adapter and its own weights.
BASE = ".base_layer"
_FACTORS = (".lora_A.", ".lora_B.")


class Adapter:
    """The adapter of a model: what is trained of it, beside a scalar head.

    Args:
        model: with the adapter in it; also a module around it, whose names are meant then.
        config: as `inject_adapter_in_model` has left it, with the names of the layers.
    """

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        self.config = config
        self._layers = lora_layers(model)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model computes as it did without the adapter. For passes without a gradient."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def factors(self) -> Iterator[tuple[str, Any, float]]:
        """Name, trained weight, and what the layer multiplies it by.

        In the order of the layers; of each A [r, in], then B [out, r], which has the factor.
        """
        for name, layer in self._layers.items():
            yield f"{name}.lora_A.weight", layer.lora_A[_NAME].weight, 1.0
            yield f"{name}.lora_B.weight", layer.lora_B[_NAME].weight, layer.scaling[_NAME]


def add_adapter(
    model: PreTrainedModel,
    settings: LoraConfig,
    *,
    seed: int,
    key: str,
    within: nn.Module | None = None,
) -> Adapter:
    """Put an adapter on a model, and freeze everything else; the model computes as before.

    A is random, by `seed` alone, so that every rank has the same; B is 0.

    Args:
        key: of the settings, for messages.
        within: what the model is a part of, where the adapter's layers are to be named from there.

    Raises:
        RequestError: there is no such layer, or one that cannot have an adapter.
    """
    wanted = settings.target_modules
    config = PeftConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        use_rslora=settings.rslora,
        target_modules=ALL_LINEAR if wanted == [ALL_LINEAR] else wanted,
        task_type=TaskType.CAUSAL_LM,
    )
    dtype = model.dtype
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            raise RequestError(
                f"{key}.target_modules={wanted}: {error}. Among the names of the model's layers "
                f"are {', '.join(_linear_names(model))}"
            ) from error
    for name, layer in _tuned(model).items():
        if not isinstance(layer, Linear) or layer is model.get_output_embeddings():
            raise RequestError(
                f"{key}.target_modules={wanted}: {name} cannot have an adapter here; name linear "
                f"layers other than the output head, or take [{ALL_LINEAR}]"
            )
        # peft makes adapters of bfloat16 models in float32; the optimizer has float32 anyway.
        layer.lora_A.to(dtype)
        layer.lora_B.to(dtype)
    return Adapter(within or model, config)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers of a model that have an adapter, by name."""
    return {name: layer for name, layer in _tuned(model).items() if isinstance(layer, Linear)}


def is_factor(name: str) -> bool:
    """A weight of this name in the model is one of an adapter."""
    return any(factor in name for factor in _FACTORS)


def merged(layer: Any) -> Tensor:
    """The weight of a layer with its adapter, in the number format of the weight.

    All of the layer's weights must be whole.
    """
    base = layer.get_base_layer().weight
    delta = layer.get_delta_weight(_NAME)
    return (base.float() + delta.float()).to(base.dtype)


def _tuned(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def _linear_names(model: nn.Module) -> list[str]:
    """The different ends of the names of all linear layers."""
    names = (name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))
