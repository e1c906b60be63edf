"""Checkpoints of an RL run: roles, prompts, texts, controllers, the best evaluation."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.driver.checkpoint_state import reading_state
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.resume_choice import Resume, verified
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.rollouts.waiting_groups import (
    NO_WAITING_GROUPS,
    NoWaitingGroups,
    WaitingGroups,
)
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.texts import TextSource


@dataclass(kw_only=True, slots=True)
class LoopState:
    """The state of the loop itself. `step` steps are done; weights have version `step`."""

    step: int
    controllers: Controllers


class RunCheckpoints:
    """Saves and restores everything that a resumed run needs.

    Args:
        checkpoints: writes the roles, and knows when a checkpoint is due.
        texts: source of the trainer's texts.
        evaluator: knows which model is the best so far.
        groups: a role of `checkpoints`, too: the groups that wait for a later step.
    """

    def __init__(
        self,
        checkpoints: StepCheckpoints,
        *,
        texts: TextSource,
        evaluator: Evaluator,
        groups: WaitingGroups | NoWaitingGroups = NO_WAITING_GROUPS,
    ) -> None:
        self._checkpoints = checkpoints
        self._texts = texts
        self._evaluator = evaluator
        self._groups = groups

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return self._checkpoints.is_due(step)

    def save_if_due(self, state: LoopState, pipeline: RolloutPipeline) -> None:
        """Write a checkpoint if one is due after `state.step` steps.

        Raises:
            RunFailed: a worker failed or was late.
        """
        self._checkpoints.poll()
        if not self._checkpoints.is_due(state.step):
            return
        # Before the state of the pipeline, which says what becomes of every prompt.
        self._groups.gather(pipeline)
        self._checkpoints.save(
            state.step,
            {
                "adaptive": state.controllers.state_dict(),
                "pipeline": pipeline.state_dict(),
                "groups": self._groups.state_dict(),
                "texts": self._texts.state_dict(),
                "evaluation": self._evaluator.state_dict(),
            },
        )
        self._evaluator.pin()

    @property
    def newest(self) -> tuple[int, Path] | None:
        """See `StepCheckpoints.newest`."""
        return self._checkpoints.newest

    def load_roles(self, folder: Path, names: Collection[str]) -> None:
        """See `StepCheckpoints.load_roles`."""
        self._checkpoints.load_roles(folder, names)

    def give_up_writing(self) -> None:
        """See `StepCheckpoints.give_up_writing`."""
        self._checkpoints.give_up_writing()

    def finish(self) -> None:
        """Wait for a checkpoint that is still being written.

        Raises:
            RunFailed: a worker failed or was late.
        """
        self._checkpoints.finish()

    def load(
        self,
        folder: Path,
        pipeline: RolloutPipeline,
        report: Callable[[str], None] = lambda _: None,
    ) -> LoopState:
        """Put roles, pipeline, texts and evaluator where the checkpoint left them.

        Args:
            report: takes sentences about groups that waited.

        Raises:
            RequestError: the checkpoint is damaged, or belongs to a run with other settings.
            RunFailed: a worker failed or was late.
        """
        saved = self._checkpoints.read(folder)
        # The driver's state first: its damage is found before the ranks read theirs.
        with reading_state(folder):
            controllers = Controllers.load(saved["adaptive"])
            pipeline.load_state_dict(saved["pipeline"])
            # Checkpoints of releases without texts or without evaluation lack these keys.
            self._texts.load_state_dict(saved.get("texts", {}))
            # The folder is checkpoints/step_000050 in the folder of its run.
            self._evaluator.load_state_dict(saved.get("evaluation", {}), folder.parent.parent)
        self._checkpoints.load_roles(folder)
        self._groups.restore(folder, saved, pipeline, report)
        return LoopState(step=saved["step"], controllers=controllers)

    def verified(self, resume: Resume, report: Callable[[str], None]) -> Path:
        """The folder to load; see `resume_choice.verified`."""
        return verified(resume, self._checkpoints, report)
