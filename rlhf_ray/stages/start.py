"""The start of a stage: cheap checks, the output folder, the run, the record of its end."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.atomic_file import partial_path
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.run import Config
from rlhf_ray.config.stages import TRAINING_STAGES
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.interrupts import is_interrupted
from rlhf_ray.observe.metrics import check_metrics
from rlhf_ray.run_folder.contents import MovedAside, check_owner, results_in
from rlhf_ray.run_folder.ending import END_FILE
from rlhf_ray.run_folder.finished import FILE_NAME, read_finished, write_finished
from rlhf_ray.run_folder.lock import LOCK, FolderLock, folder_lock
from rlhf_ray.run_folder.place import prepare_place, remove_made
from rlhf_ray.stages.stage import FolderUse, Stage
from rlhf_ray.stages.told_end import told_end

_ERROR_LOG = "error.log"
# Put back as they were where a request is refused after all.
_RECORDS = ("config.yaml", FILE_NAME, END_FILE)


def start_stage(stage: Stage, config: Config, *, replaces: bool = False) -> int:
    """Check the request, hold the output folder, and run the stage in it.

    Args:
        replaces: the folder is a part of a larger run, which begins this part again: whatever it
            holds is moved aside.

    Returns:
        the exit status, 0.

    Raises:
        RequestError: the request is wrong; no worker has been started then.
        RunFailed: it failed while running.
    """
    stage.check(config)
    folder = Path(config.output_dir)
    if stage.folder is FolderUse.NONE:
        return stage.run(config)
    if stage.folder is FolderUse.REPLACED:
        # The stage writes next to the folder, locks that place, and replaces the folder at the end.
        remove_made(prepare_place(partial_path(folder)))
        if folder.is_dir():
            (folder / _ERROR_LOG).unlink(missing_ok=True)
        return stage.run(config)
    with held_folder(folder, stage.name) as (lock, written):
        if not replaces:
            check_owner(folder, stage.name, written=written)
        stage.look_ahead(config)
        lock.write(stage.name)
        if stage.name not in TRAINING_STAGES:
            for name in (_ERROR_LOG, END_FILE):
                (folder / name).unlink(missing_ok=True)
            with told_end(folder, stage.name, lock.is_there):
                return _run(stage, config, lock)
        return _train(stage, config, lock, replaces=replaces)


@contextlib.contextmanager
def held_folder(folder: Path, stage: str) -> Iterator[tuple[FolderLock, str | None]]:
    """Make the folder and hold its lock; a refused request leaves no folder behind.

    Yields:
        The lock, and the stage that had written its file before.

    Raises:
        RequestError: the folder cannot be written, or another run writes there.
    """
    made = prepare_place(folder)
    with folder_lock(folder / LOCK, folder=folder) as lock:
        if lock.problem is not None:
            print(
                f"rlhf_ray: output_dir cannot be locked: {lock.problem}; a second run of "
                f"stage={stage} there would not be noticed",
                file=sys.stderr,
            )
        before = lock.read()
        try:
            yield lock, before
        except RequestError:
            if all(child.name == LOCK for child in folder.iterdir()) and made:
                lock.remove()
                remove_made(made)
            raise


def _run(stage: Stage, config: Config, lock: FolderLock) -> int:
    """Run the stage; a folder that was deleted meanwhile is the cause of any failure."""
    try:
        status = stage.run(config)
    except Exception as error:
        if lock.is_there() or isinstance(error, RequestError):
            raise
        raise _gone(config) from error
    if not lock.is_there():
        raise _gone(config)
    return status


def _gone(config: Config) -> RunFailed:
    return RunFailed(
        f"the folder output_dir={config.output_dir} was deleted, moved or replaced while the run "
        f"was writing to it; its results are lost"
    )


def _train(stage: Stage, config: Config, lock: FolderLock, *, replaces: bool) -> int:
    folder = Path(config.output_dir)
    start = _decide(config, replaces=replaces)
    if start.done:
        print(start.done, flush=True)
        return 0
    if not start.moves_aside:
        check_metrics(folder / "metrics.jsonl")
    records = {name: (folder / name).read_bytes() for name in _RECORDS if (folder / name).is_file()}
    moved = MovedAside(folder) if start.moves_aside else None
    for name in (FILE_NAME, END_FILE, _ERROR_LOG):
        (folder / name).unlink(missing_ok=True)
    if moved is not None:
        print(
            f"starting at step 0: the output of an earlier run is now in {moved.place}", flush=True
        )
    try:
        with told_end(folder, stage.name, lock.is_there):
            status = _run(stage, config, lock)
            write_finished(folder, config)
    except RequestError:
        # Nothing was trained: the earlier run's output is as it was.
        if moved is not None:
            moved.undo()
            print("the request was refused: the earlier output is back in its place", flush=True)
        for name, content in records.items():
            (folder / name).write_bytes(content)
        raise
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit)) or is_interrupted():
            print(f"rlhf_ray: {_next_start(config)}", file=sys.stderr)
        raise
    return status


def _next_start(config: Config) -> str:
    """The last checkpoint of an interrupted run, and the next start by the same command."""
    newest = Checkpoints(Path(config.output_dir), keep_last=1).resolve("auto")
    if newest is None:
        every = config.checkpoint.every_steps
        why = f"checkpoint.every_steps={every}" + ("" if every else " writes none")
        again = "from step 0" if config.resume in ("auto", "never") else f"from {config.resume}"
        return f"no checkpoint was committed ({why}); the same command starts again {again}"
    if config.resume == "auto":
        return f"the last committed checkpoint is {newest}; the same command goes on from it"
    again = "from step 0" if config.resume == "never" else f"from {config.resume}"
    return (
        f"the last committed checkpoint is {newest}; resume=auto goes on from it, and this command "
        f"(resume={config.resume}) starts again {again}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """The way in which a training run begins in its folder.

    Attributes:
        done: the words for a run that has nothing left to do; empty for one that has.
        moves_aside: it starts from step 0, and the folder holds an earlier run's output.
    """

    done: str = ""
    moves_aside: bool = False


def _decide(config: Config, *, replaces: bool) -> _Start:
    """Decide between going on, starting from step 0, and nothing to do.

    Raises:
        RequestError: the folder holds a finished run with other settings.
    """
    folder = Path(config.output_dir)
    holds = bool(results_in(folder))
    goes_on = not replaces and _goes_on(config, folder)
    finished = read_finished(folder)
    if finished is None or config.resume != "auto" or replaces:
        return _Start(moves_aside=holds and not goes_on)
    differences = finished.differences(config)
    is_longer = finished.is_longer(config)
    if not differences and not is_longer and finished.has_its_model(folder):
        return _Start(
            done=(
                f"done: this run of stage={finished.stage} ended on {finished.at} "
                f"({finished.length()}), and nothing is left to do; resume=never starts it "
                f"again\nResult: {folder / 'model'}"
            )
        )
    if (is_longer and goes_on) or (not differences and not is_longer):
        return _Start(moves_aside=holds and not goes_on)
    raise RequestError(
        f"output_dir is {str(folder)!r}, which holds a finished run of stage={finished.stage} "
        f"({finished.length()}; {finished.at}), "
        + (
            f"and this one is another: {'; '.join(differences)}"
            if differences
            else "and it left no checkpoint to go on from (checkpoint.every_steps=0)"
        )
        + ". Name another output_dir, or resume=never to start from step 0 and move the earlier "
        "output aside"
    )


def _goes_on(config: Config, folder: Path) -> bool:
    """Whether the run continues from a checkpoint of this folder."""
    if config.resume == "never":
        return False
    if config.resume == "auto":
        return Checkpoints(folder, keep_last=1).resolve("auto") is not None
    return (folder / "checkpoints").resolve() in Path(config.resume).resolve().parents
