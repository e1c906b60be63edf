"""The settings of a run in its checkpoints, and what a resumed run has changed of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.earlier_release import earlier_key
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.objective_keys import is_accepted, is_objective
from rlhf_ray.config.schema import path_keys
from rlhf_ray.driver.resume_code import FUNCTIONS, changed_code, entries_of, is_moved_code
from rlhf_ray.models.fingerprint import is_of_weights

_MAX_SHOWN = 120
_MAX_FILES = 3
_SAME_FILES = " (the same files)"
# Keys of rows, where a driver's state has the hashes of all of them, and the names of these hashes.
# Every run reads all its rows before it starts, and `check_rows` compares them: a source that was
# moved is known by its content, at no cost but that of reading.
_ROWS = {
    "data.path": (("pipeline", "prompts"), ("fingerprint", "rows_fingerprint")),
    "texts.path": (("texts",), ("fingerprint",)),
    "examples.path": (("steps",), ("fingerprint",)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The files behind a key that names a model, a tokenizer or a template.

    Attributes:
        hashes: by name; empty if there is nothing to look at.
        are_weights_read: the run goes on with these weights. False for those that a checkpoint
            replaces: their change is listed and no more. Other files are read by every run.
    """

    hashes: Mapping[str, str]
    are_weights_read: bool

    def changed(self, before: Mapping[str, str]) -> list[str]:
        """Names of the files that are others than before."""
        names = sorted({*before, *self.hashes})
        return [name for name in names if before.get(name) != self.hashes.get(name)]

    def is_same_to_run(self, before: Mapping[str, str] | None) -> bool:
        """Whether all files that the run reads are known to be as before, wherever they lie."""
        if not before or not self.hashes:
            return False
        changed = self.changed(before)
        return not any(self.are_weights_read or not is_of_weights(name) for name in changed)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The settings of a run, as a checkpoint keeps them.

    Attributes:
        identity: settings without which a resumed run is not the same run.
        configuration: the value of every key.
        defaults: of every key, for checkpoints of releases that did not have it.
        code: hashes of the files of reward functions and of what they import, by path.
        models: files behind the keys that name models, by key.
        accepted: keys and groups whose change a resumed run accepts.
    """

    identity: dict[str, Any]
    configuration: Mapping[str, Any]
    defaults: Mapping[str, Any]
    code: Mapping[str, str]
    models: Mapping[str, ModelFiles]
    accepted: tuple[str, ...]

    def in_checkpoint(self) -> dict[str, Any]:
        """The keys of the driver's state about settings, next to the identity."""
        models = {key: dict(files.hashes) for key, files in self.models.items()}
        return {
            "configuration": dict(self.configuration),
            "code": dict(self.code),
            "models": models,
        }


def check_identity(
    folder: Path,
    there: Mapping[str, Any],
    here: Mapping[str, Any],
    *,
    files_there: Any = None,
    files_here: Any = None,
    state: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to go on from the checkpoint of a run with other settings.

    A model in another place is the same if all its files are. Rows in another place are compared
    when they are read, if the checkpoint can tell them.

    Args:
        state: of the driver; None tells nothing of its rows.
        files_there, files_here: the key `models` of `RunSettings.in_checkpoint`, of the checkpoint
            and of this run.

    Raises:
        RequestError: names every setting that differs, and the files that do.
    """
    # A checkpoint of an earlier release has the old name of a key that was renamed.
    saved = {name: there.get(name, there.get(earlier_key(name))) for name in here}
    files = {
        name: _compared(_mapping(_mapping(files_there).get(name)), dict(own))
        for name, own in _mapping(files_here).items()
    }
    differing = [
        f"{name}={saved[name]!r} there, {value!r} here{files.get(name, '')}"
        for name, value in here.items()
        if not _is_same(name, saved[name], value)
        and files.get(name) != _SAME_FILES
        and not _is_told_by_rows(name, saved[name], value, state or {})
    ]
    if differing:
        raise RequestError(
            f"the checkpoint {folder} is of another run: {'; '.join(differing)}. Use its "
            f"settings, another output_dir, or resume=never to start from step 0"
        )


def _is_told_by_rows(name: str, there: Any, here: Any, state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has hashes of all rows behind a key, so that its path decides nothing.

    A release that hashed tokens alone cannot tell the columns that rewards read.
    """
    if name not in _ROWS or not (isinstance(there, str) and isinstance(here, str)):
        return False
    place, hashes = _ROWS[name]
    found: Any = state
    for part in place:
        found = _mapping(found).get(part)
    # With a curriculum the stream lies within its state.
    found = _mapping(found).get("stream", found)
    return all(_mapping(found).get(each) for each in hashes)


def _compared(there: Mapping[str, Any], here: Mapping[str, str]) -> str:
    """Words on the files of a model there and here, to follow their paths."""
    if not there or not here:
        return " (whether the files are the same is not known)"
    other = sorted(name for name in {*there, *here} if there.get(name) != here.get(name))
    return f" (other content of {_first(other)})" if other else _SAME_FILES


def _first(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - _MAX_FILES} more" if len(names) > _MAX_FILES else ""
    return f"{', '.join(names[:_MAX_FILES])}{more}"


def compare_settings(folder: Path, state: Mapping[str, Any], here: RunSettings) -> list[str]:
    """List the settings that have changed since a checkpoint: key, old value, new value.

    Raises:
        RequestError: one of them decides what is optimised, and is not accepted.
    """
    saved = state.get("configuration")
    if not isinstance(saved, dict):
        return [
            f"the checkpoint {folder} is of a release that kept no configuration: changed settings "
            f"are not known, except for those of the run's identity, which are the same"
        ]
    changes, decisive = _all_changes(saved, state, here)
    refused = {key: changes[key] for key in decisive if not is_accepted(key, here.accepted)}
    if refused:
        raise RequestError(
            f"the checkpoint {folder} is of a run that optimises something else: "
            f"{'; '.join(refused.values())}. Use its settings, or accept the change with "
            f"'checkpoint.accept_changes=[{','.join(refused)}]', or set another output_dir, or "
            f"resume=never to start from step 0"
        )
    listed = "; ".join(changes.values())
    notes = [f"changed since the checkpoint: {listed}"] if listed else []
    if here.models and "models" not in state:
        notes.append(
            f"the checkpoint {folder} is of a release that kept no hashes of model files: whether "
            f"the files behind {', '.join(here.models)} have changed is not known"
        )
    return notes


def changed_objectives(state: Mapping[str, Any], here: RunSettings) -> list[str]:
    """Keys that decide what is optimised, and have changed since a checkpoint."""
    _, decisive = _all_changes(_mapping(state.get("configuration")), state, here)
    return decisive


def _all_changes(
    saved: Mapping[str, Any], state: Mapping[str, Any], here: RunSettings
) -> tuple[dict[str, str], list[str]]:
    """A sentence for every key that differs, and those that decide what is optimised."""
    changes = _changes(saved, here)
    code, models = _mapping(state.get("code")), _mapping(state.get("models"))
    moved = FUNCTIONS in changes and is_moved_code(
        saved.get(FUNCTIONS), here.configuration[FUNCTIONS], code, here.code
    )
    if moved:
        changes[FUNCTIONS] += " (moved: the same code)"
    # A key with another value has other files, too, and its own sentence is the better one.
    changed_files = _changed_files(models, here.models)
    changes = {**changed_files, **changed_code(code, here.code), **changes}
    decisive = [
        key
        for key in changes
        if is_objective(key)
        and not (key == FUNCTIONS and moved)
        and not (key in here.models and here.models[key].is_same_to_run(models.get(key)))
    ]
    return changes, decisive


def _changes(saved: Mapping[str, Any], here: RunSettings) -> dict[str, str]:
    """A sentence for every key whose value is not that of the checkpoint."""
    changes = {}
    for key, value in here.configuration.items():
        # A release that did not have the key did what is the default now.
        before = saved.get(key, saved.get(earlier_key(key), here.defaults[key]))
        if not _is_same(key, before, value):
            changes[key] = f"{key}: {' -> '.join(_shown_both(before, value))}"
            if key in _ROWS and None not in (before, value):
                changes[key] += " (moved: all rows are compared when they are read)"
    return changes


def _mapping(value: Any) -> dict[str, Any]:
    """A part of a driver's state, or an empty one where a release did not have it."""
    return value if isinstance(value, dict) else {}


def _changed_files(
    saved: Mapping[str, Mapping[str, str]], here: Mapping[str, ModelFiles]
) -> dict[str, str]:
    """A sentence for every key behind which there are other files than before."""
    changed = {}
    for key, files in here.items():
        before = saved.get(key)
        if not before or not files.hashes or not (other := files.changed(before)):
            continue
        changed[key] = f"{key}: other content of {_first(other)}"
    return changed


def _is_same(name: str, there: Any, here: Any) -> bool:
    if there == here or _plain(there) == _plain(here):
        return True
    if name == FUNCTIONS:
        return entries_of(there) == entries_of(here)
    is_path = name in {key.name for key in path_keys()}
    return is_path and isinstance(there, str) and isinstance(here, str) and _one_place(there, here)


def _one_place(there: str, here: str) -> bool:
    """Whether two paths lead to one existing file; earlier releases kept relative paths."""
    try:
        return os.path.samefile(Path(there).expanduser(), Path(here).expanduser())
    except (OSError, ValueError, RuntimeError):
        return False


def _plain(value: Any) -> Any:
    """The value as it reads back from a checkpoint: tuples are lists there."""
    return json.loads(json.dumps(value))


def _shown_both(before: Any, after: Any) -> tuple[str, str]:
    """Two different values as JSON; long ones from a little before their first difference on."""
    one, other = (json.dumps(value, ensure_ascii=False) for value in (before, after))
    start = 0
    if max(len(one), len(other)) > _MAX_SHOWN:
        pairs = zip(one, other, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
        start = max(0, same - _MAX_SHOWN // 4)
    return _part(one, start), _part(other, start)


def _part(text: str, start: int) -> str:
    end = start + _MAX_SHOWN
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"
