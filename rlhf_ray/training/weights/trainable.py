"""What of a model is trained: all of it, all but some weights, or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.training import CriticConfig, TrainingConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.training.weights.lora import Adapter, add_adapter

_BACKBONE = "backbone."


def choose_of_policy(
    model: PreTrainedModel, settings: TrainingConfig, *, seed: int
) -> Adapter | None:
    """Freeze what is not trained of a causal language model; its adapter, where it gets one.

    Raises:
        RequestError: the model has not what the settings name.
    """
    if settings.lora.is_on:
        return add_adapter(model, settings.lora, seed=seed, key=_key(settings))
    names = dict(model.named_parameters(remove_duplicate=False))
    freeze(names, model.get_decoder(), settings)
    return None


def choose_of_scalar(
    model: ScalarHeadModel, settings: TrainingConfig, *, seed: int
) -> Adapter | None:
    """The same of a backbone with a scalar head, which is trained whole beside an adapter.

    For `freeze` the weights of the backbone have the names that they have in a language model.

    Raises:
        RequestError: the model has not what the settings name.
    """
    if settings.lora.is_on:
        lora, key = settings.lora, _key(settings)
        return add_adapter(model.backbone, lora, seed=seed, key=key, within=model)
    prefix = f"{model.backbone.base_model_prefix}."
    names = {
        prefix + name.removeprefix(_BACKBONE) if name.startswith(_BACKBONE) else name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    freeze(names, model.backbone, settings)
    return None


def _key(settings: TrainingConfig) -> str:
    return f"{group_of(settings)}.lora"


_MAX_NAMES = 5


def freeze(
    parameters: Mapping[str, nn.Parameter], decoder: PreTrainedModel, settings: TrainingConfig
) -> None:
    """Take the gradient from what `freeze_layers` and `freeze` name; such weights never change.

    A tensor that is used in two places (a tied output head) is frozen in both.

    Args:
        parameters: of the whole model, by their Hugging Face names, each name once.
        decoder: the part of the model with the embedding and the layers.

    Raises:
        RequestError: there are fewer layers, a pattern is of no weight, or nothing is left.
    """
    group = group_of(settings)
    if settings.freeze_layers:
        decoder.get_input_embeddings().requires_grad_(False)
        layers = _layers(decoder)
        if settings.freeze_layers > len(layers):
            raise RequestError(
                f"{group}.freeze_layers={settings.freeze_layers}: the model has {len(layers)} "
                f"layers; lower it"
            )
        layers[: settings.freeze_layers].requires_grad_(False)
    for pattern in settings.freeze:
        found = [weight for name, weight in parameters.items() if fnmatchcase(name, pattern)]
        if not found:
            raise RequestError(
                f"{group}.freeze={pattern}: the model has no weight of such a name; among its "
                f"names are {', '.join(_examples(parameters))}"
            )
        for weight in found:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in parameters.values()):
        raise RequestError(
            f"{group}.freeze={settings.freeze} and {group}.freeze_layers={settings.freeze_layers} "
            f"leave nothing to train; freeze less"
        )


def group_of(settings: TrainingConfig) -> str:
    """The group of the configuration that these settings are."""
    return "critic" if isinstance(settings, CriticConfig) else "training"


def _layers(decoder: Any) -> nn.ModuleList:
    """The stack of layers, whatever the architecture calls it."""
    wanted = decoder.config.get_text_config().num_hidden_layers
    stacks = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == wanted
    ]
    if len(stacks) != 1:
        raise RequestError(
            f"freeze_layers: {type(decoder).__name__} has no one list of {wanted} layers; name "
            f"the weights with freeze"
        )
    return stacks[0]


def _examples(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names from all over the model."""
    names = list(parameters)
    return names[:: max(1, len(names) // _MAX_NAMES)][:_MAX_NAMES]
