"""Evaluations while a policy is trained: when they are due, and which step was best."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.driver.best_models import BestModels
from rlhf_ray.driver.evaluation.collector import Collected
from rlhf_ray.evaluation.evaluation_report import ReportSettings
from rlhf_ray.evaluation.training_metrics import flat_metrics
from rlhf_ray.records import Prompt

PREFIX = "evaluation"
AVERAGE_PREFIX = f"{PREFIX}/ema"


class NoEvaluation:
    """Null object for `evaluation.every=0`."""

    def is_due(self, step: int) -> bool:
        del step
        return False

    def evaluate(self, step: int) -> dict[str, float]:
        del step
        return {}

    def pin(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], run_folder: Path) -> None:
        del state, run_folder


class BestPolicy:
    """The model of the best evaluation so far, in `best/step_000050`, and `best.json` about it.

    Args:
        models: keeps the folders.
        metric: name of the metric that evaluations are compared by; NaN is never the best.
        rows: fingerprint of the held-out rows.
        say: shows a sentence.
    """

    def __init__(
        self,
        output_dir: Path,
        models: BestModels,
        *,
        metric: str,
        lowest_is_best: bool,
        rows: str,
        say: Callable[[str], None],
    ) -> None:
        self._note = output_dir / "best.json"
        self._models = models
        self._metric = metric
        self._rows = rows
        self._say = say
        self._sign = -1.0 if lowest_is_best else 1.0
        self._step = 0
        self._value = math.nan

    def clear(self) -> None:
        """Remove the models of an earlier run."""
        self._models.clear()
        self._note.unlink(missing_ok=True)

    def consider(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """Keep the current model if it is the best so far; return the best step and value."""
        value = metrics[self._metric]
        if math.isfinite(value) and (self._step == 0 or self._is_better(value)):
            self._models.keep(step)
            self._step, self._value = step, value
            self._write_note()
        if self._step == 0:
            return {}
        return {f"{PREFIX}/best_step": float(self._step), f"{PREFIX}/best_value": self._value}

    def pin(self) -> None:
        """Keep the best model as long as the checkpoint that was just written."""
        if self._step:
            self._models.pin(self._step)

    def state_dict(self) -> dict[str, Any]:
        """Plain values; empty before the first evaluation."""
        if self._step == 0:
            return {}
        return {
            "step": self._step,
            "value": self._value,
            "metric": self._metric,
            "rows": self._rows,
        }

    def load_state_dict(self, state: dict[str, Any], run_folder: Path) -> None:
        """Go on from a checkpoint. With another metric or rows, earlier evaluations do not count.

        Raises:
            RequestError: the best model at the time of the checkpoint is gone.
        """
        # A release that kept no fingerprint is taken at its word.
        if state and state.get("rows", self._rows) != self._rows:
            self._say(
                f"the held-out prompts are not those of the checkpoint: its best evaluation, step "
                f"{state['step']} with {self._metric}={state['value']:.4g}, counts no more"
            )
        elif state and state["metric"] == self._metric:
            self._step, self._value = state["step"], state["value"]
        self._models.resume(self._step, run_folder)
        if self._step:
            self._write_note()
        else:
            self._note.unlink(missing_ok=True)

    def _is_better(self, value: float) -> bool:
        return self._sign * value > self._sign * self._value

    def _write_note(self) -> None:
        note = {
            "step": self._step,
            "metric": self._metric,
            "value": self._value,
            "folder": str(self._models.folder(self._step)),
        }
        self._note.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")


class NoBest:
    """Null object for `evaluation.keep_best=false`."""

    def clear(self) -> None: ...

    def consider(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        del step, metrics
        return {}

    def pin(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any], run_folder: Path) -> None:
        del state, run_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatorSettings:
    """The interval of evaluations, and the contents of their reports.

    Attributes:
        every: steps between two evaluations; there is always one after the last step.
    """

    every: int
    num_steps: int
    report: ReportSettings


class HeldOutEvaluator:
    """Evaluates the policy on held-out prompts.

    Args:
        collect: lets the engines answer prompts; see `collector.AnswerCollector.collect`.
        best: keeps the model of the best evaluation.
        average: publishes the EMA of the policy to the engines, for an evaluation after the last
            step; None without an EMA.
        keep: writes the scored groups of a step to a file, by name.
    """

    def __init__(
        self,
        *,
        collect: Callable[[Sequence[Prompt]], Collected],
        prompts: Sequence[Prompt],
        best: BestPolicy | NoBest,
        average: Callable[[int], None] | None,
        keep: Callable[[str, Sequence[Any]], None],
        settings: EvaluatorSettings,
    ) -> None:
        self._collect = collect
        self._prompts = prompts
        self._best = best
        self._average = average
        self._keep = keep
        self._settings = settings

    def is_due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps."""
        settings = self._settings
        return step % settings.every == 0 or step == settings.num_steps

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the policy; after the last step also of its EMA, which the engines keep.

        Raises:
            RunFailed: a worker failed or was late, or too many prompts failed.
        """
        metrics = self._measure(f"step_{step:06}", PREFIX)
        metrics |= self._best.consider(step, metrics)
        if step == self._settings.num_steps and self._average is not None:
            self._average(step)
            metrics |= self._measure(f"step_{step:06}_ema", AVERAGE_PREFIX)
        return metrics

    def pin(self) -> None:
        """Keep the best model as long as the checkpoint that was just written."""
        self._best.pin()

    def state_dict(self) -> dict[str, Any]:
        return self._best.state_dict()

    def load_state_dict(self, state: dict[str, Any], run_folder: Path) -> None:
        self._best.load_state_dict(state, run_folder)

    def _measure(self, name: str, prefix: str) -> dict[str, float]:
        collected = self._collect(self._prompts)
        self._keep(name, collected.groups)
        metrics = flat_metrics(collected.prompts, self._settings.report, prefix=prefix)
        return metrics | {f"{prefix}/failed_prompts": float(len(collected.failures))}


# What evaluates a policy while it is trained.
Evaluator = HeldOutEvaluator | NoEvaluation
