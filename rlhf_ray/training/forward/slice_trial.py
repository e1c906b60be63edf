"""A trial of slices: whether ranks that hold them compute what one rank computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.training.engine.ranks import largest_over_ranks
from rlhf_ray.training.engine.slicing.autotp import slice_module

_NUM_TOKENS = 12


def try_slices(copy: Any, role: RoleConfig, *, name: str) -> None:
    """Divide a shallow copy of a role's decoder, and compare it with itself; all ranks call it.

    Tried and not looked up: a plan of slices is a statement, and a model that computes over all
    heads in a way that the plan does not say would be wrong without an error.

    Args:
        copy: with the same weights on all ranks; of no use afterwards.
        name: of the decoder's class.

    Raises:
        ValueError: hidden states or gradients differ.
    """
    expected = _computed(copy)
    slice_module(copy, role.tensor_parallel_size)
    problem = _difference(expected, _computed(copy), copy.dtype)
    # All ranks decide alike: one that went on alone would wait for the others for ever.
    if largest_over_ranks(int(bool(problem)), expected[0].device):
        raise ValueError(
            f"tensor_parallel_size={role.tensor_parallel_size}: {name} cannot be divided: "
            f"{problem or 'another rank has wrong results'}; set tensor_parallel_size to 1"
        )


@torch.enable_grad()
def _computed(decoder: Any) -> tuple[Tensor, Tensor]:
    """Hidden states [1, T, H] of some tokens, and the gradient [1, T, H] of their embeddings."""
    embedding = decoder.get_input_embeddings()
    device = embedding.weight.device
    tokens = torch.arange(5, 5 + _NUM_TOKENS, device=device)[None] % embedding.weight.shape[0]
    inputs = embedding(tokens).detach().requires_grad_(True)
    states = decoder(inputs_embeds=inputs, use_cache=False).last_hidden_state
    # Another weight for every number: one that is left out or counted twice is seen.
    factors = torch.linspace(0.5, 1.5, states.numel(), device=device).view(states.shape)
    (gradient,) = torch.autograd.grad((states.float() * factors).sum(), inputs)
    return states.detach().double(), gradient.double()


def _difference(
    expected: tuple[Tensor, Tensor], found: tuple[Tensor, Tensor], dtype: torch.dtype
) -> str:
    """The first result that differs by more than rounding; empty if there is none."""
    names = ("hidden states", "gradients")
    for name, right, other in zip(names, expected, found, strict=True):
        difference = float((right - other).abs().max())
        bound = min(1000 * torch.finfo(dtype).eps, 0.05) * float(right.abs().max())
        if not difference <= bound:
            return f"its {name} are off by {difference:.3g} (at most {bound:.3g} is rounding)"
    return ""
