"""Low-rank adapters on a model: added, switched off, merged. The main user of peft.

`inject_adapter_in_model` wraps layers in place: the model keeps its class, and the names of a
wrapped layer's weights become `NAME.base_layer.weight`, `NAME.lora_A.default.weight` and
`NAME.lora_B.default.weight`. `weights.named_weights` hides these names from the engines and from
saved models.
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

# Name of the only adapter, as peft gives it.
_NAME = "default"
# Part of a weight's name between the layer with an adapter and the layer that it wraps.
BASE = ".base_layer"
_FACTORS = (".lora_A.", ".lora_B.")


class Adapter:
    """The adapter of a model. Nothing else is trained but a scalar head, if there is one.

    Args:
        model: the model with the adapter in it, or a module around it; layers are named from here.
        config: peft's configuration after `inject_adapter_in_model`, with the names of the layers.
    """

    def __init__(self, model: nn.Module, config: PeftConfig) -> None:
        self.config = config
        self._layers = lora_layers(model)

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switch the adapter off for a `with` block, for passes without a gradient.

        The base model is then the reference, so a LoRA run needs no second copy of a large model.
        """
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def factors(self) -> Iterator[tuple[str, Any, float]]:
        """Name, trained weight and scale, layer by layer: A [r, in], then B [out, r].

        The layer's scale (alpha / r, or alpha / sqrt(r)) is given with B.
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
    """Put an adapter on a model and freeze everything else; its output does not change.

    A is random and depends on `seed` alone, so that all ranks have the same; B is 0.

    Args:
        key: configuration key of the settings, for messages.
        within: a module around the model; if given, the adapter's layers are named from there.

    Raises:
        RequestError: no layer has such a name, or the layer cannot have an adapter.
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
    # The random state is restored: an adapter must not shift the numbers that are drawn later.
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
        # peft also adapts embeddings and convolutions, whose merge is another one. The output head
        # is called by `forward.head_logprobs` and may be tied to the embedding: merging into it
        # would change both.
        if not isinstance(layer, Linear) or layer is model.get_output_embeddings():
            raise RequestError(
                f"{key}.target_modules={wanted}: {name} cannot have an adapter here; name linear "
                f"layers other than the output head, or take [{ALL_LINEAR}]"
            )
        # peft makes float32 adapters for bfloat16 models, but the optimizer has float32 weights.
        layer.lora_A.to(dtype)
        layer.lora_B.to(dtype)
    return Adapter(within or model, config)


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """Layers with an adapter, by name."""
    return {name: layer for name, layer in _tuned(model).items() if isinstance(layer, Linear)}


def is_factor(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return any(factor in name for factor in _FACTORS)


def merged(layer: Any) -> Tensor:
    """The weight of a layer with its adapter added, in the number format of the weight.

    All weights of the layer must be gathered. The base weight is not changed: merging into bfloat16
    and subtracting again would lose bits at every publication.
    """
    base = layer.get_base_layer().weight
    delta = layer.get_delta_weight(_NAME)
    return (base.float() + delta.float()).to(base.dtype)


def _tuned(model: nn.Module) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def _linear_names(model: nn.Module) -> list[str]:
    """Distinct last parts of the names of all linear layers."""
    names = (name for name, layer in model.named_modules() if isinstance(layer, nn.Linear))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))
