"""Trials of a role's model before its weights are there: its output head, its layouts of rows."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from rlhf_ray.batching.row_layout import RowLayout, row_layout
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.models.unloaded.shallow import shallow_backbone, shallow_policy
from rlhf_ray.training.engine.ranks import training_device
from rlhf_ray.training.forward.modules import PolicyForward
from rlhf_ray.training.forward.slice_trial import try_slices


def try_policy(policy: PreTrainedModel, model: ModelConfig, role: RoleConfig) -> RowLayout:
    """Check a policy's output head, and choose its layouts of rows.

    Both are properties of its classes, and are tried on a shallow copy: on the device and with the
    attention kernel of the training.

    Args:
        policy: with or without weights, not sharded yet.

    Raises:
        RequestError: the copy cannot be made.
        ValueError: see `PolicyForward.check_head`, `row_layout` and `try_slices`.
    """
    decoder: Any = policy.get_decoder()
    copy = shallow_policy(model, decoder, dtype=role.dtype, device=training_device())
    PolicyForward(copy).check_head()
    return _chosen(decoder, copy.get_decoder(), model, role)


def try_backbone(scalar: ScalarHeadModel, model: ModelConfig, role: RoleConfig) -> RowLayout:
    """Choose the layouts of rows of a backbone with a scalar head; see `try_policy`."""
    copy = shallow_backbone(model, scalar.backbone, dtype=role.dtype, device=training_device())
    return _chosen(scalar.backbone, copy, model, role)


def _chosen(decoder: Any, copy: Any, model: ModelConfig, role: RoleConfig) -> RowLayout:
    layout = row_layout(decoder, role, model.attention, trial=copy)
    if role.tensor_parallel_size > 1:
        try_slices(copy, role, name=type(decoder).__name__)
    if torch.cuda.is_available():
        # Of the copy: another process may share the GPU, and wait for room.
        torch.cuda.empty_cache()
    return layout
