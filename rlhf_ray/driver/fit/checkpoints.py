"""Checkpoints of a stage that learns from examples: ranks, rows, the best model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoint_state import reading_state
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.fit.held_out import Improvement
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.resume_choice import Resume, verified


@dataclass(kw_only=True, slots=True)
class FitState:
    """The state of the loop itself. `step` optimiser steps are done."""

    step: int
    improvement: Improvement


class FitCheckpoints:
    """Saves and restores everything that a resumed stage needs.

    Args:
        checkpoints: writes the ranks, and knows when a checkpoint is due.
        steps: the rows of every step.
        models: knows which models a checkpoint still needs.
    """

    def __init__(
        self,
        checkpoints: StepCheckpoints,
        *,
        steps: FitSteps[Any],
        models: BestModels | LastModel,
    ) -> None:
        self._checkpoints = checkpoints
        self._steps = steps
        self._models = models

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return self._checkpoints.is_due(step)

    def save_if_due(self, state: FitState) -> None:
        """Write a checkpoint if one is due after `state.step` steps.

        Raises:
            RunFailed: a worker failed or was late.
        """
        self._checkpoints.poll()
        if not self._checkpoints.is_due(state.step):
            return
        self._checkpoints.save(
            state.step,
            {"improvement": state.improvement.state_dict(), "steps": self._steps.state_dict()},
        )
        self._models.pin(state.improvement.best_step)

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written.

        Raises:
            RunFailed: a worker failed or was late.
        """
        self._checkpoints.finish()

    def load(self, folder: Path) -> FitState:
        """Put ranks, rows and models where the checkpoint left them.

        Raises:
            DataError: the checkpoint has other rows, another seed or another order.
            RequestError: the checkpoint is damaged, the run had other settings, or its best model
                is gone.
            RunFailed: a worker failed or was late.
        """
        saved = self._checkpoints.read(folder)
        with reading_state(folder):
            improvement = Improvement.load(saved["improvement"])
            self._steps.load_state_dict(saved["steps"])
        state = FitState(step=saved["step"], improvement=improvement)
        # The folder is checkpoints/step_000050 in the folder of its run.
        self._models.resume(state.improvement.best_step, folder.parent.parent)
        self._checkpoints.load_roles(folder)
        return state

    def verified(self, resume: Resume, report: Callable[[str], None]) -> Path:
        """The folder to load; see `resume_choice.verified`."""
        return verified(resume, self._checkpoints, report)
