"""The coefficient of the KL penalty over time: fixed, or steered towards a target."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

_MAX_PROPORTIONAL_ERROR = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class KLController:
    """State of the controller: the coefficient now, and where it is to go.

    Attributes:
        coefficient: weight of the KL penalty in force.
        target: KL per response to hold, in nats; infinite for a fixed coefficient.
        horizon: samples over which the coefficient moves.
    """

    coefficient: float
    target: float
    horizon: int


def fixed_kl_controller(coefficient: float) -> KLController:
    """A controller that never moves."""
    return KLController(coefficient=coefficient, target=math.inf, horizon=1)


def update_kl_controller(
    state: KLController, *, observed_kl: float, num_samples: int
) -> KLController:
    """The controller after a batch of `num_samples` responses with mean KL `observed_kl`.

        error       = clip(observed_kl / target - 1, -0.2, 0.2)
        coefficient = coefficient * (1 + error * num_samples / horizon)

    Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences,
    arXiv:1909.08593, section 2.2, with K_beta = num_samples / horizon. That factor is at most
    1, so that a batch larger than the horizon cannot turn the coefficient negative.

    Args:
        observed_kl: mean over responses of the summed k1, in nats; must be finite.
    """
    assert math.isfinite(observed_kl), f"observed KL is {observed_kl}; the policy has diverged"
    if math.isinf(state.target):
        return state
    error = observed_kl / state.target - 1.0
    error = max(-_MAX_PROPORTIONAL_ERROR, min(_MAX_PROPORTIONAL_ERROR, error))
    gain = min(num_samples / state.horizon, 1.0)
    return dataclasses.replace(state, coefficient=state.coefficient * (1.0 + error * gain))
