"""Which model is the result: that of the best evaluation, or that of the last step.

A kept model lies in `best/step_000050`. While a run goes on there are those of the best so far,
and of the best as of each checkpoint that is kept, because a resumed run may need it.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rlhf_ray.atomic_file import atomic_folder
from rlhf_ray.config.errors import RequestError

# Writes the model of the ranks to a folder, and waits for it.
SaveModel = Callable[[Path], object]

_FOLDER = "best"


class BestModels:
    """Writes the model at every improvement.

    Args:
        num_checkpoints: that are kept at a time.
    """

    def __init__(self, output_dir: Path, save: SaveModel, *, num_checkpoints: int) -> None:
        self._root = output_dir / _FOLDER
        self._save = save
        self._pinned: deque[int] = deque(maxlen=num_checkpoints)

    def start_anew(self) -> None:
        """Forget what an earlier run left."""
        self._remove_all_but()

    def resume(self, best_step: int, run_folder: Path) -> None:
        """Go on from a checkpoint, whose best model must be there.

        Args:
            best_step: 0 where nothing was evaluated before it.
            run_folder: of the run that wrote it, which may be another one.

        Raises:
            RequestError: it is gone.
        """
        if best_step:
            there = run_folder / _FOLDER / _name(best_step)
            if not there.is_dir():
                raise RequestError(
                    f"the best model before the checkpoint, {there}, is gone, so that this run "
                    f"cannot go on; take another checkpoint, or start anew with resume=never"
                )
            if there != self.folder(best_step):
                with atomic_folder(self.folder(best_step)) as partial:
                    shutil.copytree(there, partial)
            self._pinned.append(best_step)
        self._remove_all_but(best_step)

    def keep(self, step: int) -> None:
        """The model as it is now is the best so far."""
        with atomic_folder(self.folder(step)) as partial:
            self._save(partial)
        self._remove_all_but(step, *self._pinned)

    def pin(self, best_step: int) -> None:
        """A checkpoint was written that knows this one as the best."""
        self._pinned.append(best_step)

    def finish(self, best_step: int, result: Path) -> None:
        """Make the best model the result; the last one where nothing was evaluated."""
        best = self.folder(best_step)
        with atomic_folder(result) as partial:
            if not best_step:
                self._save(partial)
            elif best_step in self._pinned:
                # A checkpoint needs it too.
                shutil.copytree(best, partial)
            else:
                best.rename(partial)

    def folder(self, step: int) -> Path:
        """Where the model of this step is, if it is kept."""
        return self._root / _name(step)

    def _remove_all_but(self, *steps: int) -> None:
        kept = {self.folder(step) for step in steps}
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            if folder not in kept:
                shutil.rmtree(folder)


class LastModel:
    """Keeps nothing on the way; the result is the model of the last step."""

    def __init__(self, save: SaveModel) -> None:
        self._save = save

    def start_anew(self) -> None: ...

    def resume(self, best_step: int, run_folder: Path) -> None: ...

    def keep(self, step: int) -> None: ...

    def pin(self, best_step: int) -> None: ...

    def finish(self, best_step: int, result: Path) -> None:
        del best_step
        with atomic_folder(result) as partial:
            self._save(partial)


def _name(step: int) -> str:
    return f"step_{step:06d}"
