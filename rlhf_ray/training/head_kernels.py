"""What computes log-probabilities from hidden states, by the name in the configuration."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from rlhf_ray.training.forward.fused_head import LigerOrChunks, liger
from rlhf_ray.training.forward.head_logprobs import Head, HeadKernel, chunked


def _auto(head: Head) -> HeadKernel:
    return LigerOrChunks(head) if torch.cuda.is_available() else partial(chunked, head)


_KERNELS: dict[str, Callable[[Head], HeadKernel]] = {
    "auto": _auto,
    "chunked": lambda head: partial(chunked, head),
    "liger": liger,
}


def head_kernel(name: str, head: Head) -> HeadKernel:
    """The implementation of this name for this head.

    Raises:
        ValueError: it cannot do what this head needs, or is not installed.
    """
    return _KERNELS[name](head)
