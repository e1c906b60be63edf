"""Saving and restoring a stage that learns from examples: ranks, rows, the best so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.driver.best_models import BestModels, LastModel
from rlhf_ray.driver.checkpoints import Checkpoints, read_state
from rlhf_ray.driver.fit.held_out import load_improvement, save_improvement
from rlhf_ray.driver.fit.loop import FitState
from rlhf_ray.driver.fit.steps import FitSteps
from rlhf_ray.driver.run_checkpoints import StatefulRole

_ROLE = "learner"


class FitCheckpoints:
    """Checkpoints of one run.

    Args:
        every_steps: 0 writes none.
        identity: settings that a resumed run must share with the one that was saved.
    """

    def __init__(
        self,
        *,
        checkpoints: Checkpoints,
        role: StatefulRole,
        steps: FitSteps[Any],
        models: BestModels | LastModel,
        watch: CallWaiter,
        every_steps: int,
        timeout_s: float,
        identity: dict[str, Any],
    ) -> None:
        self._checkpoints = checkpoints
        self._role = role
        self._steps = steps
        self._models = models
        self._watch = watch
        self._every_steps = every_steps
        self._timeout_s = timeout_s
        self._identity = identity

    def save_if_due(self, state: FitState) -> None:
        """Write a checkpoint after every `every_steps` steps."""
        if not self._every_steps or state.step % self._every_steps:
            return
        folder = self._checkpoints.begin(state.step)
        self._wait(self._role.save_checkpoint(folder / _ROLE))
        saved = {
            "step": state.step,
            "identity": self._identity,
            "improvement": save_improvement(state.improvement),
            "steps": self._steps.state_dict(),
        }
        self._checkpoints.commit(folder, saved)
        self._models.pin(state.improvement.best_step)

    def load(self, folder: Path) -> FitState:
        """Put ranks, rows and models where the checkpoint left them.

        Raises:
            RequestError: it is of other rows, or its best model is gone.
        """
        saved = read_state(folder)
        state = FitState(step=saved["step"], improvement=load_improvement(saved["improvement"]))
        self._steps.load_state_dict(saved["steps"])
        # checkpoints/step_000050 in the folder of its run.
        self._models.resume(state.improvement.best_step, folder.parent.parent)
        self._wait(self._role.load_checkpoint(folder / _ROLE))
        return state

    def _wait(self, calls: Sequence[Call]) -> None:
        self._watch.results(calls, phase="checkpoint", timeout_s=self._timeout_s)
