"""The share of groups that may fail before the run ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.records import SampleFailure

_WINDOW = 100


class FailureBudget:
    """Counts failed groups among the last 100.

    Args:
        max_rate: share of 100 groups that may fail. Already the first groups count as a share of
            100: one early failure does not end a run, and a run in which every group fails ends
            soon.
    """

    def __init__(self, max_rate: float) -> None:
        self._max_rate = max_rate
        self._recent: deque[bool] = deque(maxlen=_WINDOW)
        self._first: str | None = None

    def record(self, failures: Sequence[SampleFailure]) -> None:
        """Count one group; `failures` is empty if it succeeded.

        Raises:
            RunFailed: more groups failed than allowed. Shows the first failure of the run.
        """
        self._recent.append(bool(failures))
        if failures and self._first is None:
            self._first = str(failures[0])
        failed = sum(self._recent)
        if failed > self._max_rate * _WINDOW:
            raise RunFailed(
                f"{failed} of the last {len(self._recent)} groups failed, and "
                f"reward.max_failure_rate={self._max_rate:g} allows "
                f"{self._max_rate * _WINDOW:g} of {_WINDOW}. The first failure was: {self._first}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"recent": list(self._recent), "first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._recent = deque(state["recent"], maxlen=_WINDOW)
        self._first = state["first"]
