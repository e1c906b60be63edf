"""Scenarios of a policy with an EMA. See `scenarios`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_ray.training.engine.slicing.tensor_slice import slice_of
from rlhf_ray.training.roles.learner import Learner
from tests.stack.training.rank import Rank, weights_of

DECAY = 0.75
NUM_STEPS = 3


def ema_policy(here: Rank, *, name: str, **settings: Any) -> dict[str, Any]:
    """Some optimiser steps with a checkpoint after the first, and the last ones again from it.

    The optimizer's float32 weights, of which the EMA is taken, are recorded after every step.
    """
    folder = here.folder / f"checkpoint_{name}_{here.world_size}"
    with here.learner(ema_decay=DECAY, warmup_steps=0, **settings) as learner:
        seen = [_optimizer_weights(learner)]
        averages = []
        for number in range(NUM_STEPS):
            here.update(learner)
            seen.append(_optimizer_weights(learner))
            averages.append(_ema_of(learner))
            if number == 0:
                learner.save_checkpoint(folder)
        parts = {key: part.numel() for key, part in learner._engine.ema._parts.items()}
        weights = weights_of(learner)
        learner.save_average(here.folder / f"saved_{name}_{here.world_size}")
    with here.learner(ema_decay=DECAY, warmup_steps=0, **settings) as learner:
        learner.load_checkpoint(folder)
        for _ in range(NUM_STEPS - 1):
            here.update(learner)
        resumed = _ema_of(learner)
    return {
        "seen": seen,
        "averages": averages,
        "parts": parts,
        "weights": weights,
        "resumed": resumed,
    }


def plain_steps(here: Rank, **settings: Any) -> dict[str, Any]:
    """The same steps without an EMA."""
    with here.learner(warmup_steps=0, **settings) as learner:
        for _ in range(NUM_STEPS):
            here.update(learner)
        return {"weights": weights_of(learner)}


def ema_that_was_not_saved(here: Rank) -> dict[str, str]:
    folder = here.folder / f"no_average_{here.world_size}"
    with here.learner() as learner:
        learner.save_checkpoint(folder)
    with here.learner(ema_decay=DECAY) as learner:
        try:
            learner.load_checkpoint(folder)
        except ValueError as error:
            return {"error": str(error)}
    return {}


def _ema_of(learner: Learner) -> dict[str, Tensor]:
    averages = learner._engine.ema.named_weights(learner._model)
    return {name: tensor.clone() for name, tensor in averages}


def _optimizer_weights(learner: Learner) -> dict[str, Tensor]:
    """Whole float32 weights, from DeepSpeed's functions for debugging."""
    from deepspeed.utils import safe_get_full_fp32_param

    found = {}
    for name, parameter in learner._engine.module.named_parameters():
        # Without ZeRO there is no other copy.
        whole = safe_get_full_fp32_param(parameter)
        value = parameter.detach() if whole is None else whole
        part = slice_of(parameter)
        value = value if part is None else part.joined(value)
        found[name.removeprefix("model.")] = value.float().clone()
    assert not any(torch.isnan(value).any() for value in found.values())
    return found
