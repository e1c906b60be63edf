"""From a quantity per token to one number, by global counts."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_ray.algorithms.checks import assert_token_tensors


def masked_mean(values: Tensor, mask: Tensor, global_count: int) -> Tensor:
    """This micro-batch's share of the mean over all masked tokens of the optimiser step.

        sum over the mask of values / global_count

    Conventions: `global_count` counts the masked tokens of ALL ranks and micro-batches, so the
    plain SUM of the shares over ranks and micro-batches is the mean, whatever the split (the
    token mean of Yu et al. 2025, DAPO, arXiv:2503.14476, section 3.3). An engine that averages
    gradients over ranks must multiply by their number. Without a masked token the result is
    0 with a gradient path (of zeros), so that a rank without work still joins the others'
    backward pass.

    Args:
        values [N] floating point or bool, mask [N] bool.

    Returns:
        a scalar.
    """
    if values.dtype == torch.bool:
        values = values.float()
    assert_token_tensors(mask, values=values)
    assert global_count >= 0, f"global_count is {global_count}"
    return torch.where(mask, values, 0.0).sum() / max(global_count, 1)
