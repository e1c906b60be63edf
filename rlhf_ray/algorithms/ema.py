"""Weights that follow other weights: the exponential moving average."""

from __future__ import annotations

import torch
from torch import Tensor


def moving_average(average: Tensor, latest: Tensor, *, decay: float) -> Tensor:
    """The average after `latest` has been seen: two tensors of one shape to a new one.

        average <- decay * average + (1 - decay) * latest

    computed as average + (1 - decay) * (latest - average), so that what does not move stays
    exactly where it is. With `decay` 0 the result is `latest`, bit for bit.

    The result has the number format of `average`, and is computed in it: keep the average in
    float32, also of weights in bfloat16. A step of (1 - decay) times a difference is soon below
    the 2^-9 of itself that bfloat16 can tell apart, and would then be lost every time.

    There is no correction of the start (as in Adam): an average begins at weights that are worth
    something, and not at 0.

    Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging (SIAM J.
    Control Optim. 30); Ruppert 1988. As the anchor of a KL penalty: Ramé et al. 2024 (WARP),
    arXiv:2406.16768, section 3.1; with `decay` 0, a reset of the reference to the policy: Liu et
    al. 2025 (ProRL), arXiv:2505.24864. As the result of a run: Yao et al. 2023
    (DeepSpeed-Chat), arXiv:2308.01320.

    Args:
        decay: weight of the past, in [0, 1).
    """
    assert average.shape == latest.shape, f"{average.shape} does not follow {latest.shape}"
    assert 0.0 <= decay < 1.0, decay
    latest = latest.to(device=average.device, dtype=average.dtype)
    if decay == 0.0:
        return latest.clone()
    return torch.lerp(average, latest, 1.0 - decay)
