"""Ranks that learn without a model: the loop of `driver/fit/loop.py` without Ray and DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.testing.fake_roles import FakeOfflineRanks
from rlhf_ray.testing.fakes import done


class SummingRanks(FakeOfflineRanks):
    """The model is one number per rank, the sum of all its samples.

    Args:
        losses: held-out losses of one evaluation after the other; the last one repeats.
    """

    def __init__(self, num_ranks: int = 2, losses: Sequence[float] = (1.0,)) -> None:
        self.weights = [0] * num_ranks
        self.updates: list[tuple[Any, ...]] = []
        self.num_evaluations = 0
        self._losses = tuple(losses)

    def update(self, samples: Sequence[Any]) -> list[Call]:
        self.updates.append(tuple(samples))
        self.weights = [w + sum(own) for w, own in zip(self.weights, samples, strict=True)]
        return self._calls({"train/loss": float(sum(self.weights))})

    def evaluate(self, samples: Sequence[Any]) -> list[Call]:
        del samples
        loss = self._losses[min(self.num_evaluations, len(self._losses) - 1)]
        self.num_evaluations += 1
        return self._calls({"eval/loss": loss})

    def save_model(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights.json").write_text(json.dumps(self.weights))

    def save_checkpoint(self, folder: Path) -> list[Call]:
        folder.mkdir(parents=True)
        state = {"weights": self.weights, "num_evaluations": self.num_evaluations}
        (folder / "state.json").write_text(json.dumps(state))
        return self._calls(None)

    def load_checkpoint(self, folder: Path) -> list[Call]:
        state = json.loads((folder / "state.json").read_text())
        self.weights, self.num_evaluations = state["weights"], state["num_evaluations"]
        return self._calls(None)

    def _calls(self, signal: Any) -> list[Call]:
        return [done("learner", rank, signal) for rank in range(len(self.weights))]


class FakeMetrics:
    """Metrics writer and progress that remember the rows, without times.

    Args:
        dies_at: a step after whose row the process is killed.
    """

    def __init__(self, dies_at: int = -1) -> None:
        self.rows: list[dict[str, float]] = []
        self._dies_at = dies_at

    def phase(self, name: str) -> None:
        del name

    def step_done(self, step: int, metrics: Any) -> None:
        del step, metrics

    def write(self, step: int, metrics: Any) -> None:
        kept = {name: value for name, value in metrics.items() if not name.startswith("time/")}
        self.rows.append({"step": step, **kept})
        if step == self._dies_at:
            raise KeyboardInterrupt
