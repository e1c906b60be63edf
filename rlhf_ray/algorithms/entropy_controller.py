"""The coefficient of the entropy bonus over time: fixed, or moved to hold an entropy."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyController:
    """State of the controller.

    Attributes:
        coefficient: what `entropy_coefficient` starts from.
        target: entropy per token to hold, in nats; negative infinity for a fixed coefficient.
        step_size: how far the coefficient moves after a batch.
        observed: entropy of the last batch; infinite before the first one.
    """

    coefficient: float
    target: float
    step_size: float
    observed: float


def fixed_entropy_controller(coefficient: float) -> EntropyController:
    """A controller that never moves."""
    return EntropyController(
        coefficient=coefficient, target=-math.inf, step_size=0.0, observed=math.inf
    )


def entropy_coefficient(state: EntropyController) -> float:
    """Weight of the bonus in force: with a target, 0 while the entropy is above it."""
    if math.isinf(state.target):
        return state.coefficient
    return state.coefficient if state.observed <= state.target else 0.0


def update_entropy_controller(
    state: EntropyController, *, observed_entropy: float
) -> EntropyController:
    """The controller after a batch with this mean entropy per token.

        coefficient = coefficient + step_size   if the entropy is below the target
        coefficient = coefficient - step_size   otherwise, but not below 0

    He et al. 2025, Skywork Open Reasoner 1, arXiv:2505.22312 (adaptive entropy control).

    Args:
        observed_entropy: in nats; must be finite.
    """
    assert math.isfinite(observed_entropy), f"observed entropy is {observed_entropy}"
    if math.isinf(state.target):
        return state
    move = state.step_size if observed_entropy < state.target else -state.step_size
    return dataclasses.replace(
        state, coefficient=max(0.0, state.coefficient + move), observed=observed_entropy
    )
