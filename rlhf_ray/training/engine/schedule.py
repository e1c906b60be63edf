"""The learning rate as a function of the optimiser step."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlhf_ray.config.groups.training import TrainingConfig

# Progress of the decay (0 to 1) to the share of the way from peak to floor that is still left.
_DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda _progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


def learning_rate(step: int, *, settings: TrainingConfig, total_steps: int) -> float:
    """Learning rate of optimiser step `step`, counted from 0.

    Linear warm-up, so that step k of W trains with (k + 1) / W of the peak; then the decay, which
    reaches `min_learning_rate_ratio` of the peak at the last step and stays there:

        progress = (step - W) / (total_steps - 1 - W), at most 1
        rate     = peak * (ratio + (1 - ratio) * decay(progress))

    The warm-up gives no step a rate of 0. Cosine: Loshchilov and Hutter 2017,
    SGDR, arXiv:1608.03983, without restarts.

    Args:
        total_steps: optimiser steps of the whole run.
    """
    assert step >= 0, f"optimiser step is {step}"
    peak, warmup = settings.peak_learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    ratio = 1.0 if settings.schedule == "constant" else settings.min_learning_rate_ratio
    return peak * (ratio + (1.0 - ratio) * _DECAYS[settings.schedule](progress))
