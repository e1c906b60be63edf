"""What of a model is trained: all of it, all but some weights, or an adapter."""

from __future__ import annotations

from transformers import PreTrainedModel

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.training.freezing import freeze, group_of
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
