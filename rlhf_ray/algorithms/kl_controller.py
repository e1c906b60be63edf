"""The coefficient of the KL penalty over time: fixed, scheduled, or steered towards a target."""

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
        target: KL per response to hold, in nats; infinite for a coefficient that does not
            depend on what is observed.
        horizon: samples over which an adaptive coefficient moves.
        final, remaining_steps: where a scheduled coefficient goes, and in how many batches.
    """

    coefficient: float
    target: float
    horizon: int
    final: float
    remaining_steps: int


def fixed_kl_controller(coefficient: float) -> KLController:
    """A controller that never moves."""
    return scheduled_kl_controller(coefficient, final=coefficient, num_steps=0)


def scheduled_kl_controller(coefficient: float, *, final: float, num_steps: int) -> KLController:
    """A controller that goes to `final` in a straight line, in `num_steps` batches."""
    return KLController(
        coefficient=coefficient,
        target=math.inf,
        horizon=1,
        final=final,
        remaining_steps=num_steps,
    )


def adaptive_kl_controller(coefficient: float, *, target: float, horizon: int) -> KLController:
    """A controller that holds a KL of `target` nats per response."""
    return KLController(
        coefficient=coefficient,
        target=target,
        horizon=horizon,
        final=coefficient,
        remaining_steps=0,
    )


def update_kl_controller(
    state: KLController, *, observed_kl: float, num_samples: int
) -> KLController:
    """The controller after a batch of `num_samples` responses with mean KL `observed_kl`.

    Adaptive:

        error       = clip(observed_kl / target - 1, -0.2, 0.2)
        coefficient = coefficient * (1 + error * num_samples / horizon)

    Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences,
    arXiv:1909.08593, section 2.2, where the gain K_beta is 0.1; num_samples / horizon is that of
    their code. Here it is at most 1: above 5 the factor 1 - 0.2 * gain would be negative.

    Scheduled: the coefficient goes an equal part of the way to `final` in every batch.

    Args:
        observed_kl: mean over responses of the summed k1, in nats; must be finite.
    """
    assert math.isfinite(observed_kl), f"observed KL is {observed_kl}; the policy has diverged"
    if state.remaining_steps:
        part = (state.final - state.coefficient) / state.remaining_steps
        return dataclasses.replace(
            state,
            coefficient=state.coefficient + part,
            remaining_steps=state.remaining_steps - 1,
        )
    if math.isinf(state.target):
        return state
    error = observed_kl / state.target - 1.0
    error = max(-_MAX_PROPORTIONAL_ERROR, min(_MAX_PROPORTIONAL_ERROR, error))
    gain = min(num_samples / state.horizon, 1.0)
    return dataclasses.replace(state, coefficient=state.coefficient * (1.0 + error * gain))
