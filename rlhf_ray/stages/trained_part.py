"""The trained part of a model: whether the model has it, and where its result goes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import CriticConfig, TrainingConfig
from rlhf_ray.config.rules.rule import trained_roles
from rlhf_ray.config.run import Config
from rlhf_ray.models.loading import empty_policy, empty_scalar_head
from rlhf_ray.training.weights.lora import lora_layers
from rlhf_ray.training.weights.lora_folder import FOLDER
from rlhf_ray.training.weights.trainable import freeze_or_adapt_policy, freeze_or_adapt_scalar


def check_trained(config: Config) -> None:
    """Refuse settings that name layers or weights that the model does not have.

    Looks at the model's configuration, not at its weights; at nothing where all is trained.

    Raises:
        RequestError: says which setting, and what there is.
    """
    for group, role in trained_roles(config):
        if role.trains_all:
            continue
        if group == "critic":
            path = config.critic.path or config.model.path
            model = dataclasses.replace(config.model, path=path)
            freeze_or_adapt_scalar(empty_scalar_head(model), role, seed=config.seed)
        elif config.stage.name == "reward_model":
            freeze_or_adapt_scalar(empty_scalar_head(config.model), role, seed=config.seed)
        else:
            freeze_or_adapt_policy(empty_policy(config.model), role, seed=config.seed)


def with_named_layers(
    training: TrainingConfig, model_settings: ModelConfig, *, seed: int
) -> TrainingConfig:
    """Replace `all-linear` by the ends of the layers' names, which engines need to know.

    Raises:
        RequestError: the model does not have a layer that is named.
    """
    model = empty_policy(model_settings)
    freeze_or_adapt_policy(model, training, seed=seed)
    names = sorted({name.rpartition(".")[2] for name in lora_layers(model)})
    lora = dataclasses.replace(training.lora, target_modules=names)
    return dataclasses.replace(training, lora=lora)


def trained_identity(training: TrainingConfig, critic: CriticConfig) -> dict[str, Any]:
    """The trained part as a checkpoint names it; null where everything is trained."""
    found: dict[str, Any] = {}
    for group, role in (("training", training), ("critic", critic)):
        found[f"{group}.lora"] = dataclasses.asdict(role.lora) if role.lora.is_on else None
        found[f"{group}.freeze"] = role.freeze or None
        found[f"{group}.freeze_layers"] = role.freeze_layers or None
    return found


def split_off_adapter(output: Path) -> None:
    """Move the adapter out of model/ to its own folder next to it, if one was trained."""
    written = output / "model" / FOLDER
    if written.is_dir():
        shutil.rmtree(output / FOLDER, ignore_errors=True)
        written.rename(output / FOLDER)
