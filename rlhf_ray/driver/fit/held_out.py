"""Held-out rows: their loss while a stage learns, and how it has improved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.roles import OfflineRole

# The metric that evaluations are compared by, the smaller the better; every rank reports it.
LOSS = "eval/loss"


class HeldOut:
    """Evaluates on the same samples every time.

    Args:
        per_rank: samples of each rank.
        every: steps between two evaluations; 0 evaluates only before the first step and after
            the last.
    """

    def __init__(
        self,
        role: OfflineRole,
        waiter: CallWaiter,
        per_rank: Sequence[Any],
        *,
        every: int,
        timeout_s: float,
    ) -> None:
        self._role = role
        self._waiter = waiter
        self._per_rank = per_rank
        self._every = every
        self._timeout_s = timeout_s

    def is_due(self, step: int, *, num_steps: int) -> bool:
        """Whether to evaluate after `step` steps."""
        return step in (0, num_steps) or (self._every > 0 and step % self._every == 0)

    def evaluate(self) -> dict[str, float]:
        """Metrics of the ranks as they are now, `eval/loss` among them.

        Raises:
            RunFailed: a worker failed or was late.
        """
        calls = self._role.evaluate(self._per_rank)
        # Every rank reports the same numbers.
        return self._waiter.results(calls, phase="evaluate", timeout_s=self._timeout_s)[0]


class NoHeldOut:
    """Null object of a stage without held-out rows."""

    def is_due(self, step: int, *, num_steps: int) -> bool:
        del step, num_steps
        return False

    def evaluate(self) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Improvement:
    """The lowest held-out loss so far. The evaluation before the first step does not count.

    Attributes:
        best_step: steps after which the loss was lowest; 0 before the first evaluation.
        best_loss: the loss after `best_step` steps.
        num_without: evaluations since then, all without an improvement.
    """

    best_step: int
    best_loss: float
    num_without: int

    def after(self, step: int, loss: float, *, min_improvement: float) -> Improvement:
        """Record one more evaluation; NaN never counts as an improvement."""
        # A comparison with NaN is False.
        if loss < self.best_loss - min_improvement:
            return Improvement(best_step=step, best_loss=loss, num_without=0)
        return Improvement(
            best_step=self.best_step, best_loss=self.best_loss, num_without=self.num_without + 1
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: null stands for it."""
        return {
            "best_step": self.best_step,
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "num_without": self.num_without,
        }

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Improvement:
        """Restore from `state_dict`."""
        loss = saved["best_loss"]
        return cls(
            best_step=saved["best_step"],
            best_loss=math.inf if loss is None else loss,
            num_without=saved["num_without"],
        )


NOTHING_EVALUATED = Improvement(best_step=0, best_loss=math.inf, num_without=0)
