"""The trained part of a model: all weights, all but frozen ones, or an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.training import CriticConfig, TrainingConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.models.unloaded.parts import layer_stacks
from rlhf_ray.training.weights.lora import Adapter, add_adapter

_BACKBONE = "backbone."


def freeze_or_adapt_policy(
    model: PreTrainedModel, settings: TrainingConfig, *, seed: int
) -> Adapter | None:
    """Freeze weights of a causal language model, or put an adapter on it and return the adapter.

    Raises:
        RequestError: the model has no weights or layers of the names in the settings.
    """
    if settings.lora.is_on:
        return add_adapter(model, settings.lora, seed=seed, key=_key(settings))
    names = dict(model.named_parameters(remove_duplicate=False))
    freeze(names, model.get_decoder(), settings)
    return None


def freeze_or_adapt_scalar(
    model: ScalarHeadModel, settings: TrainingConfig, *, seed: int
) -> Adapter | None:
    """Like `freeze_or_adapt_policy`, for a backbone with a scalar head, which is always trained.

    Patterns in `freeze` match the names that the backbone has inside a language model.

    Raises:
        RequestError: the model has no weights or layers of the names in the settings.
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
    """Freeze the weights that `freeze_layers` and `freeze` name.

    A tensor that is used in two places (a tied output head) is frozen in both.

    Args:
        parameters: all parameters of the model by Hugging Face name.
        decoder: the part of the model with the embedding and the layers.

    Raises:
        RequestError: the model has fewer layers, no weight matches a pattern, or no weight is left
            to train.
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
    """Configuration group of the settings."""
    return "critic" if isinstance(settings, CriticConfig) else "training"


def _layers(decoder: Any) -> nn.ModuleList:
    """The list of layers, under any name (`layers`, `h`, ...)."""
    stacks = layer_stacks(decoder)
    if len(stacks) != 1:
        wanted = decoder.config.get_text_config().num_hidden_layers
        raise RequestError(
            f"freeze_layers: {type(decoder).__name__} has {len(stacks)} lists of {wanted} layers "
            f"instead of one; name the weights with freeze"
        )
    return stacks[0]


def _examples(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names from the beginning to the end of the model."""
    names = list(parameters)
    return names[:: max(1, len(names) // _MAX_NAMES)][:_MAX_NAMES]
