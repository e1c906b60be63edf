"""The settings of a run in its checkpoints, and what a resumed run has changed of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config.earlier_release import earlier_key
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.objective_keys import is_accepted, is_objective
from rlhf_ray.config.schema import path_keys

_MAX_SHOWN = 120
_MAX_FILES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """The files behind a key that names a model, a tokenizer or a template.

    Attributes:
        hashes: by name; empty if there is nothing to look at.
        is_read_on_resume: the run goes on with these weights. False for those that a checkpoint
            replaces: their change is listed and no more.
    """

    hashes: Mapping[str, str]
    is_read_on_resume: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The settings of a run, as a checkpoint keeps them.

    Attributes:
        identity: settings without which a resumed run is not the same run.
        configuration: the value of every key.
        defaults: of every key, for checkpoints of releases that did not have it.
        code: hashes of the files of reward functions, by path.
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


def check_identity(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to go on from the checkpoint of a run with other settings.

    Raises:
        RequestError: names every setting that differs.
    """
    # A checkpoint of an earlier release has the old name of a key that was renamed.
    saved = {name: there.get(name, there.get(earlier_key(name))) for name in here}
    differing = [
        f"{name}={saved[name]!r} there, {value!r} here"
        for name, value in here.items()
        if not _is_same(name, saved[name], value)
    ]
    if differing:
        raise RequestError(
            f"the checkpoint {folder} is of another run: {'; '.join(differing)}. Use its "
            f"settings, another output_dir, or resume=never to start from step 0"
        )


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
    changes = _changes(saved, here)
    code = state.get("code")
    changed_code = _changed_code(code if isinstance(code, dict) else {}, here.code)
    # A key with another value has other files, too, and its own sentence is the better one.
    changed_files = _changed_files(state.get("models"), here.models)
    changes = {**changed_files, **changes, **changed_code}
    listed_only = {key for key, files in here.models.items() if not files.is_read_on_resume}
    refused = {
        key: change
        for key, change in changes.items()
        if is_objective(key)
        and not is_accepted(key, here.accepted)
        and not (key in listed_only and key in changed_files)
    }
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


def _changes(saved: Mapping[str, Any], here: RunSettings) -> dict[str, str]:
    """A sentence for every key whose value is not that of the checkpoint."""
    changes = {}
    for key, value in here.configuration.items():
        # A release that did not have the key did what is the default now.
        before = saved.get(key, saved.get(earlier_key(key), here.defaults[key]))
        if not _is_same(key, before, value):
            changes[key] = f"{key}: {' -> '.join(_shown_both(before, value))}"
    return changes


def _changed_code(saved: Mapping[str, Any], here: Mapping[str, str]) -> dict[str, str]:
    changed = [path for path, digest in here.items() if path in saved and saved[path] != digest]
    if not changed:
        return {}
    return {"reward.functions": f"reward.functions: the code in {', '.join(changed)} has changed"}


def _changed_files(saved: Any, here: Mapping[str, ModelFiles]) -> dict[str, str]:
    """A sentence for every key behind which there are other files than before."""
    changed = {}
    for key, files in here.items():
        before = saved.get(key) if isinstance(saved, dict) else None
        if not before or not files.hashes or before == files.hashes:
            continue
        names = sorted({*before, *files.hashes})
        other = [name for name in names if before.get(name) != files.hashes.get(name)]
        more = f" and {len(other) - _MAX_FILES} more" if len(other) > _MAX_FILES else ""
        changed[key] = f"{key}: other content of {', '.join(other[:_MAX_FILES])}{more}"
    return changed


def _is_same(name: str, there: Any, here: Any) -> bool:
    if there == here or _plain(there) == _plain(here):
        return True
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
