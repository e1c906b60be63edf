"""The choice of the resulting model: the model of the best evaluation, or of the last step.

A kept model lies in `best/step_000050`. During a run, the folder holds the best model so far, and
the best model at the time of each kept checkpoint, because a resumed run may need it.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rlhf_ray.atomic_file import atomic_folder
from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.checks.weight_files import read_headers

# Writes the model of the ranks to a folder, and waits until it is written.
SaveModel = Callable[[Path], object]

_FOLDER = "best"
_PREFIX = "step_"


class BestModels:
    """Writes the model at every improvement.

    Args:
        num_checkpoints: number of checkpoints that the run keeps at a time.
    """

    def __init__(self, output_dir: Path, save: SaveModel, *, num_checkpoints: int) -> None:
        self._root = output_dir / _FOLDER
        self._save = save
        self._pinned: deque[int] = deque(maxlen=num_checkpoints)

    def clear(self) -> None:
        """Remove the models of an earlier run."""
        self._remove_all_but()

    def resume(self, best_step: int, run_folder: Path) -> None:
        """Go on from a checkpoint, whose best model must still exist.

        Args:
            best_step: step of the best evaluation before the checkpoint; 0 if there was none.
            run_folder: folder of the run that wrote the checkpoint, maybe another run.

        Raises:
            RequestError: the best model is gone.
        """
        if best_step:
            there = run_folder / _FOLDER / _name(best_step)
            if not there.is_dir():
                raise RequestError(
                    f"the best model before the checkpoint, {there}, is gone, so that this run "
                    f"cannot go on: resume another checkpoint, or start again with resume=never"
                )
            _check_whole(there)
            if there != self.folder(best_step):
                with atomic_folder(self.folder(best_step)) as partial:
                    shutil.copytree(there, partial)
        if run_folder == self._root.parent:
            # Older checkpoints of this run need theirs, if the newer ones turn out to be damaged.
            self._pinned.extend(step for step in self._steps() if 0 < step < best_step)
        if best_step:
            self._pinned.append(best_step)
        self._remove_all_but(*self._pinned)

    def keep(self, step: int) -> None:
        """Write the current model as the best so far; remove models that are no longer needed."""
        with atomic_folder(self.folder(step)) as partial:
            self._save(partial)
        self._remove_all_but(step, *self._pinned)

    def pin(self, best_step: int) -> None:
        """Keep the model of `best_step` as long as the checkpoint that was just written."""
        self._pinned.append(best_step)

    def finish(self, best_step: int, result: Path) -> None:
        """Move the best model to `result`; write the last model if nothing was evaluated."""
        best = self.folder(best_step)
        with atomic_folder(result) as partial:
            if not best_step:
                self._save(partial)
            elif best_step in self._pinned:
                # Copy and not move: a run that resumes from that checkpoint needs the model too.
                shutil.copytree(best, partial)
            else:
                best.rename(partial)

    def folder(self, step: int) -> Path:
        """Folder of the model of this step, if it is kept."""
        return self._root / _name(step)

    def _steps(self) -> list[int]:
        """Steps whose models are there, in order."""
        if not self._root.is_dir():
            return []
        found = [path.name.removeprefix(_PREFIX) for path in self._root.iterdir()]
        return sorted(int(step) for step in found if step.isdecimal())

    def _remove_all_but(self, *steps: int) -> None:
        kept = {self.folder(step) for step in steps}
        for folder in self._root.iterdir() if self._root.is_dir() else ():
            if folder not in kept:
                shutil.rmtree(folder)


class LastModel:
    """Keeps no model during the run; the result is the model of the last step."""

    def __init__(self, save: SaveModel) -> None:
        self._save = save

    def clear(self) -> None: ...

    def resume(self, best_step: int, run_folder: Path) -> None: ...

    def keep(self, step: int) -> None: ...

    def pin(self, best_step: int) -> None: ...

    def finish(self, best_step: int, result: Path) -> None:
        del best_step
        with atomic_folder(result) as partial:
            self._save(partial)


def _check_whole(folder: Path) -> None:
    """Refuse a kept model of which files were removed: it may become the result of the run.

    Raises:
        RequestError: names the files.
    """
    if not (folder / "config.json").is_file() and any(folder.iterdir()):
        return  # No model in the format of transformers.
    try:
        read_headers(folder, "the best model before the checkpoint")
    except RequestError as error:
        raise RequestError(
            f"{error}. This run cannot go on without it: resume another checkpoint, or start again "
            f"with resume=never"
        ) from error


def _name(step: int) -> str:
    return f"{_PREFIX}{step:06d}"
