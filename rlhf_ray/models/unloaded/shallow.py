"""Shallow copies of models: their first layers with random weights, for a trial of their code."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.checks.config_file import load_model_config
from rlhf_ray.models.loading import DTYPES
from rlhf_ray.models.location import explained
from rlhf_ray.models.unloaded.parts import layer_stacks

# Typical size of a logit: large enough that a soft cap, of which 30 is a common one, shows.
_LOGIT_SIZE = 10.0


def shallow_policy(
    model: ModelConfig, decoder: Any, *, dtype: str, device: torch.device
) -> PreTrainedModel:
    """Make a causal language model of the same classes with few layers.

    One layer, or as many as are needed for one of every kind. A trial of a loaded model of 72B
    weights would read 145 GB, and on a CPU, where flash-attn has no kernel.

    Args:
        decoder: of the whole model, with or without weights.
        dtype: "float32" or "bfloat16".

    Raises:
        RequestError: the configuration cannot be read, or is of no such model.
    """
    made = _shallow(AutoModelForCausalLM, model, decoder, dtype=dtype, device=device)
    head: Any = made.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(_LOGIT_SIZE)
    return made


def shallow_backbone(
    model: ModelConfig, backbone: Any, *, dtype: str, device: torch.device
) -> PreTrainedModel:
    """Like `shallow_policy`, for a model without an output head."""
    return _shallow(AutoModel, model, backbone, dtype=dtype, device=device)


def _shallow(
    auto_class: Any, model: ModelConfig, decoder: Any, *, dtype: str, device: torch.device
) -> PreTrainedModel:
    config = copy.deepcopy(load_model_config(model))
    _keep_layers(config, _num_kept(decoder))
    drawn_on = [device] if device.type == "cuda" else []
    with (
        explained(model.path, "model.path", "a copy with few layers"),
        torch.random.fork_rng(devices=drawn_on),
        device,
    ):
        torch.manual_seed(0)
        made = auto_class.from_config(
            config,
            dtype=DTYPES[dtype],
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
        )
    made.eval().requires_grad_(False)
    _scale_weights(made)
    return made


def _num_kept(decoder: Any) -> int:
    """Length of the shortest beginning of the layers with one of every kind."""
    stacks = layer_stacks(decoder)
    if len(stacks) != 1:
        return decoder.config.get_text_config().num_hidden_layers
    seen: set[object] = set()
    last = 1
    for number, layer in enumerate(stacks[0], start=1):
        kind = _kind(layer)
        if kind not in seen:
            seen.add(kind)
            last = number
    return last


def _kind(layer: nn.Module) -> object:
    """Classes of all modules of a layer, with the switches and names among their attributes."""
    return tuple((name, type(module), _switches(module)) for name, module in layer.named_modules())


def _switches(module: nn.Module) -> tuple[tuple[str, bool | str], ...]:
    own = ((name, value) for name, value in sorted(vars(module).items()) if name[0] != "_")
    return tuple((k, v) for k, v in own if isinstance(v, bool | str) and k != "training")


def _keep_layers(config: PreTrainedConfig, number: int) -> None:
    text = config.get_text_config()
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        # One entry for each layer, such as its kind of attention.
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:number])
    text.num_hidden_layers = number


@torch.no_grad()
def _scale_weights(made: nn.Module) -> None:
    """Give linear layers and embeddings weights that keep the size of their inputs.

    With the small weights of an untrained model attention hardly depends on positions, and a trial
    would not see that a model ignores them.
    """
    scaled = (m for m in made.modules() if isinstance(m, nn.Linear | nn.Embedding))
    # By identity: a tied head and its embedding have one weight.
    for weight in {id(module.weight): module.weight for module in scaled}.values():
        size = float(weight.float().std())
        if size > 0:
            weight.mul_(1.0 / (size * math.sqrt(weight.shape[1])))
