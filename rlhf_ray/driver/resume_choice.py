"""The choice of the checkpoint that a run goes on from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint_files.facts import RoleLayout, layout_change, layout_problem, load_facts
from rlhf_ray.config.errors import RequestError
from rlhf_ray.driver.checkpoint_folders import Checkpoints, step_of
from rlhf_ray.driver.checkpoint_state import (
    STATE_FILE,
    check_whole,
    damaged,
    is_committed,
    problem_of,
    read_state,
    reading_state,
)
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.resume_changes import RunSettings, check_identity, compare_settings


@dataclass(frozen=True, kw_only=True, slots=True)
class ResumedRun:
    """A run, as far as a checkpoint must fit it.

    Attributes:
        parts: keys of the driver's state that the run reads.
        layouts: of the roles with a folder in the checkpoint, by name.
        length: key and value of the run's number of steps; None where the rows decide it.
    """

    settings: RunSettings
    parts: Collection[str]
    layouts: Mapping[str, RoleLayout]
    length: tuple[str, int] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resume:
    """The checkpoint that a run goes on from.

    Attributes:
        folder: the newest that is whole, as far as the driver sees without reading large files.
        older: the ones before it, the newest first, for the case that the ranks find it damaged;
            empty where it was asked for by name.
        notes: sentences about what was passed over, and what has changed.
    """

    folder: Path
    older: tuple[Path, ...]
    notes: tuple[str, ...]


def checkpoint_to_resume(output: Path, resume: str, expected: ResumedRun) -> Resume | None:
    """Choose the checkpoint that a run goes on from; None to start from step 0.

    Called before any worker starts.

    Raises:
        RequestError: there is no such checkpoint, none is whole, or it is of a run with other
            settings or another layout.
    """
    folders = Checkpoints(output, keep_last=1)
    wanted = folders.resolve(resume)
    if wanted is None:
        return None
    is_auto = resume == "auto"
    candidates = folders.committed()[::-1] if is_auto else [wanted]
    problems: list[str] = []
    for place, folder in enumerate(candidates):
        problem = problem_of(lambda folder=folder: _check(folder, expected))
        if problem is None:
            older = tuple(candidates[place + 1 :])
            notes = [*_passed_over(folders, folder, problems), *_about(folder, expected)]
            return Resume(folder=folder, older=older, notes=tuple(notes))
        problems.append(problem)
    raise RequestError(_refusal(problems, candidates, expected.parts))


def verified(resume: Resume, checkpoints: StepCheckpoints, report: Callable[[str], None]) -> Path:
    """The newest checkpoint whose files are as they were written; the ranks read all of them.

    Raises:
        RequestError: none of them is.
        RunFailed: a worker failed or was late.
    """
    problems: list[str] = []
    candidates = [resume.folder, *resume.older]
    for folder in candidates:
        problem = problem_of(lambda folder=folder: checkpoints.check_content(folder))
        if problem is None:
            return folder
        report(f"passed over: {problem}")
        problems.append(problem)
    raise RequestError(_refusal(problems, candidates, ()))


def check_length(folder: Path, length: tuple[str, int]) -> None:
    """Refuse a run that is shorter than its checkpoint, whose model it would call its own result.

    Args:
        length: what decides the number of steps, and the number.

    Raises:
        RequestError: names both numbers.
    """
    done, (what, num_steps) = read_state(folder)["step"], length
    if done > num_steps:
        raise RequestError(
            f"the checkpoint {folder} has {done} steps, and {what} is {num_steps}: no step is "
            f"left, and the result would be that of step {done}. Ask for at least {done} steps, "
            f"name an earlier checkpoint (resume=FOLDER), or set another output_dir, or "
            f"resume=never to start from step 0"
        )


def check_rows(
    resume: Resume | None, place: Sequence[str], load: Callable[[dict[str, Any]], None]
) -> None:
    """Refuse rows that are not those of the checkpoint, before any worker starts.

    Args:
        resume: None checks nothing.
        place: keys that lead to the state of the order of rows in the driver's state. A checkpoint
            of a release without it is not compared.
        load: takes that state, as a resumed run does, and raises DataError.

    Raises:
        DataError: the rows, their seed or their order are others.
        DamagedCheckpointError: the state is not as it was written.
    """
    if resume is None:
        return
    with reading_state(resume.folder):
        state: Any = read_state(resume.folder)
        for name in place:
            state = state.get(name, {})
        if state:
            load(state)


def _check(folder: Path, expected: ResumedRun) -> None:
    """Check all that the driver can see, and refuse the checkpoint of another run.

    Raises:
        DamagedCheckpointError: it is damaged.
        RequestError: it is whole, but this run cannot go on from it.
    """
    _check_whole(folder, expected.parts)
    state, here = read_state(folder), expected.settings
    with reading_state(folder):
        check_identity(
            folder,
            state["identity"],
            here.identity,
            files_there=state.get("models"),
            files_here=here.in_checkpoint()["models"],
            state=state,
        )
    if expected.length is not None:
        check_length(folder, expected.length)
    for name, here in expected.layouts.items():
        try:
            facts = load_facts(folder / name)
        except ValueError as error:
            raise damaged(folder, str(error)) from None
        if problem := layout_problem(folder / name, facts, here):
            raise RequestError(problem)


def _check_whole(folder: Path, parts: Collection[str]) -> None:
    """Check the files, and that the folder is the one of the step that is in it.

    Raises:
        DamagedCheckpointError: see `check_whole`; or the folder has the name of another step, under
            which the run would count its checkpoints.
    """
    check_whole(folder, parts=parts)
    named, written = step_of(folder), read_state(folder)["step"]
    if named not in (-1, written):  # A copy elsewhere may have any name.
        raise damaged(
            folder,
            f"{STATE_FILE} in it is of step {written}: the folder was renamed or overwritten; its "
            f"name was step_{written:06d}",
        )


def _passed_over(folders: Checkpoints, chosen: Path, problems: Sequence[str]) -> list[str]:
    """Sentences about the checkpoints of later steps in the folder of the run."""
    notes = [f"passed over: {problem}" for problem in problems]
    later = [folder for folder in folders.folders() if step_of(folder) > step_of(chosen)]
    notes += [
        f"passed over: the checkpoint {folder} was not written to the end"
        for folder in later
        if not is_committed(folder)
    ]
    committed = [folder.name for folder in later if is_committed(folder)]
    if committed:
        notes.append(
            f"the next checkpoint removes {', '.join(committed)}: the run goes on from an earlier "
            f"step"
        )
    return notes


def _about(folder: Path, expected: ResumedRun) -> list[str]:
    """Sentences about the chosen checkpoint.

    Raises:
        RequestError: a setting has changed that must not change.
    """
    with reading_state(folder):
        notes = compare_settings(folder, read_state(folder), expected.settings)
    for name, here in expected.layouts.items():
        if change := layout_change(name, load_facts(folder / name), here):
            notes.append(change)
    if not check_whole(folder, parts=expected.parts):
        notes.append(
            f"the checkpoint {folder} is of a release without manifests: its files are not verified"
        )
    return notes


def _refusal(problems: Sequence[str], candidates: Sequence[Path], parts: Collection[str]) -> str:
    """The message about damaged checkpoints, with the whole ones next to them."""
    siblings = Checkpoints(candidates[0].parent.parent, keep_last=1).committed()[::-1]
    whole = [
        folder
        for folder in siblings
        if folder not in candidates
        and problem_of(lambda folder=folder: _check_whole(folder, parts)) is None
    ]
    ways = [f"resume={folder} goes on from the newest whole one next to it" for folder in whole[:1]]
    ways.append("resume=never starts from step 0")
    return f"{'; '.join(problems)}. {', '.join(ways) if whole else f'No other is whole: {ways[0]}'}"
