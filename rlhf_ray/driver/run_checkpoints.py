"""Saving and restoring a whole run: workers, prompts, counters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.config.errors import RequestError
from rlhf_ray.driver.checkpoints import Checkpoints, read_state
from rlhf_ray.driver.evaluation.evaluator import Evaluator
from rlhf_ray.driver.loop import LoopState
from rlhf_ray.driver.rollouts.pipeline import RolloutPipeline
from rlhf_ray.driver.updates.controllers import load_controllers, save_controllers
from rlhf_ray.driver.updates.texts import TextSource


class StatefulRole(Protocol):
    """See `cluster.roles.base.TrainedRanks`."""

    def save_checkpoint(self, folder: Path) -> list[Call]: ...
    def load_checkpoint(self, folder: Path) -> list[Call]: ...


class RunCheckpoints:
    """Checkpoints of one run.

    Args:
        roles: name of the role's folder to the role.
        texts: what the trainer takes texts from.
        evaluator: knows which model is the best so far.
        every_steps: 0 writes none.
        identity: settings that a resumed run must share with the one that was saved.
    """

    def __init__(
        self,
        *,
        checkpoints: Checkpoints,
        roles: dict[str, StatefulRole],
        texts: TextSource,
        evaluator: Evaluator,
        watch: CallWaiter,
        every_steps: int,
        timeout_s: float,
        identity: dict[str, Any],
    ) -> None:
        self._checkpoints = checkpoints
        self._roles = roles
        self._texts = texts
        self._evaluator = evaluator
        self._watch = watch
        self._every_steps = every_steps
        self._timeout_s = timeout_s
        self._identity = identity

    def save_if_due(self, state: LoopState, pipeline: RolloutPipeline) -> None:
        """Write a checkpoint after every `every_steps` steps."""
        if not self._every_steps or state.step % self._every_steps:
            return
        folder = self._checkpoints.begin(state.step)
        calls = [
            call
            for name, role in self._roles.items()
            for call in role.save_checkpoint(folder / name)
        ]
        self._wait(calls)
        saved = {
            "step": state.step,
            "identity": self._identity,
            "adaptive": save_controllers(state.controllers),
            "pipeline": pipeline.state_dict(),
            "texts": self._texts.state_dict(),
            "evaluation": self._evaluator.state_dict(),
        }
        self._checkpoints.commit(folder, saved)
        self._evaluator.pin()

    def load(self, folder: Path, pipeline: RolloutPipeline) -> LoopState:
        """Put roles, pipeline and texts where the checkpoint left them.

        Raises:
            RequestError: it is of a run with other settings.
        """
        saved = read_state(folder)
        check_identity(folder, saved["identity"], self._identity)
        self._wait(
            [
                call
                for name, role in self._roles.items()
                for call in role.load_checkpoint(folder / name)
            ]
        )
        pipeline.load_state_dict(saved["pipeline"])
        # Absent in a checkpoint of a release without texts.
        self._texts.load_state_dict(saved.get("texts", {}))
        # Likewise. The folder is checkpoints/step_000050 in that of its run.
        self._evaluator.load_state_dict(saved.get("evaluation", {}), folder.parent.parent)
        return LoopState(step=saved["step"], controllers=load_controllers(saved["adaptive"]))

    def _wait(self, calls: Sequence[Call]) -> None:
        self._watch.results(calls, phase="checkpoint", timeout_s=self._timeout_s)


def checkpoint_to_resume(output: Path, resume: str, identity: dict[str, Any]) -> Path | None:
    """The folder that a run goes on from, if it is of that same run; None: it starts anew.

    Raises:
        RequestError: no such checkpoint, or it is of a run with other settings.
    """
    folder = Checkpoints(output, keep_last=1).resolve(resume)
    if folder:
        check_identity(folder, read_state(folder)["identity"], identity)
    return folder


def check_identity(folder: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on from a run that was another one.

    Raises:
        RequestError: names every setting that differs.
    """
    differing = [
        f"{name}={there.get(name)!r} there, {value!r} here"
        for name, value in here.items()
        if there.get(name) != value
    ]
    if differing:
        raise RequestError(
            f"the checkpoint {folder} is of another run: {'; '.join(differing)}. Use its "
            f"settings, another output_dir, or resume=never to start anew"
        )
