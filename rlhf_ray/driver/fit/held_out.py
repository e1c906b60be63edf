"""Held-out rows: their loss while a stage learns, and when to stop by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter

# What is compared; every worker reports it, smaller is better.
LOSS = "eval/loss"


class EvaluatedRole(Protocol):
    """See `cluster.roles.fit.FittedRanks`."""

    def evaluate(self, samples: Sequence[Any]) -> list[Call]: ...


class HeldOut:
    """Evaluates on the same samples again and again.

    Args:
        per_rank: samples of each rank.
        every: steps between two evaluations; 0 evaluates before the first and after the last.
    """

    def __init__(
        self,
        role: EvaluatedRole,
        watch: CallWaiter,
        per_rank: Sequence[Any],
        *,
        every: int,
        timeout_s: float,
    ) -> None:
        self._role = role
        self._watch = watch
        self._per_rank = per_rank
        self._every = every
        self._timeout_s = timeout_s

    def is_due(self, step: int, *, num_steps: int) -> bool:
        """Whether to evaluate after `step` steps."""
        return step in (0, num_steps) or (self._every > 0 and step % self._every == 0)

    def evaluate(self) -> dict[str, float]:
        """Metrics, `eval/loss` among them.

        Raises:
            RunFailed: a worker failed or was late.
        """
        calls = self._role.evaluate(self._per_rank)
        # Every rank reports the same.
        return self._watch.results(calls, phase="evaluate", timeout_s=self._timeout_s)[0]


class NoHeldOut:
    """There are no held-out rows."""

    def is_due(self, step: int, *, num_steps: int) -> bool:
        del step, num_steps
        return False

    def evaluate(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Improvement:
    """How the held-out loss has gone so far; what is measured before the first step is no part.

    Attributes:
        best_step: steps after which it was lowest, 0 before the first evaluation.
        best_loss: then.
        num_without: evaluations since then.
    """

    best_step: int
    best_loss: float
    num_without: int

    def after(self, step: int, loss: float, *, min_improvement: float) -> Improvement:
        """With one more evaluation. A loss that is not a number is no improvement."""
        if loss < self.best_loss - min_improvement:
            return Improvement(best_step=step, best_loss=loss, num_without=0)
        return Improvement(
            best_step=self.best_step, best_loss=self.best_loss, num_without=self.num_without + 1
        )


NOTHING_EVALUATED = Improvement(best_step=0, best_loss=math.inf, num_without=0)


def save_improvement(improvement: Improvement) -> dict[str, Any]:
    """Plain values; JSON has no infinity."""
    loss = improvement.best_loss if math.isfinite(improvement.best_loss) else None
    return {
        "best_step": improvement.best_step,
        "best_loss": loss,
        "num_without": improvement.num_without,
    }


def load_improvement(saved: dict[str, Any]) -> Improvement:
    """What `save_improvement` saved."""
    loss = saved["best_loss"]
    return Improvement(
        best_step=saved["best_step"],
        best_loss=math.inf if loss is None else loss,
        num_without=saved["num_without"],
    )
