"""A warning about rewards that do not vary, from which a policy learns nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping

_STEPS = 5
# Share of the mean reward below which a standard deviation is none.
_SHARE = 1e-4


class FlatReward:
    """Watches the rewards of the steps of a run; warns once."""

    def __init__(self) -> None:
        self._num_flat = 0
        self._is_said = False

    def warning(self, metrics: Mapping[str, float]) -> str | None:
        """Take the metrics of the next step; returns the warning in the step that it is due."""
        mean, std = metrics.get("reward/mean", math.nan), metrics.get("reward/std", math.nan)
        self._num_flat = self._num_flat + 1 if std <= _SHARE * abs(mean) else 0
        if self._is_said or self._num_flat < _STEPS:
            return None
        self._is_said = True
        return (
            f"warning: the reward has not varied for {_STEPS} steps (mean {mean:.4g}, standard "
            f"deviation {std:.2g}): equal rewards teach the policy nothing. Unless the task is "
            f"solved, look at answers and scores in rollouts/, at the parts reward/NAME in "
            f"metrics.jsonl, and at response/truncated_fraction, the share of answers cut off"
        )
