"""The record of a finished training run, `finished.json`: the same command has nothing to do."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.config.earlier_release import earlier_key
from rlhf_ray.config.run import Config
from rlhf_ray.config.schema import path_keys

FILE_NAME = "finished.json"
# Keys that say how long a run is; more of them is a continuation.
_LENGTHS = ("num_steps", "fit.max_steps", "fit.num_epochs")
# Keys that change nothing about the result.
_IGNORED = ("output_dir", "resume", "dry_run", "recipe", "rollout_selection.exact_resume")
_IGNORED_GROUPS = (
    *("observe.", "deadlines.", "recovery.", "checkpoint.", "plan."),
    *("serve.", "chat.", "export."),
)
_MAX_NAMED = 5
# Number of all files below a folder. Records of earlier releases lack it, and have only the files
# in the folder itself.
_BELOW = "."


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A finished run.

    Attributes:
        settings: value of every key by dotted name, as JSON.
        inputs: size and time of every file that was read, by path.
        model: size of every file of the resulting model, by name.
        at: when it ended.
    """

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    model: Mapping[str, int]
    at: str

    def has_its_model(self, folder: Path) -> bool:
        """Whether the model is still there, with every file in its size."""
        return bool(self.model) and files_of(folder / "model") == dict(self.model)

    def differences(self, config: Config) -> list[str]:
        """Settings and files that differ, but for the length of the run."""
        here, there = settings_of(config), self._known_settings()
        found = [
            f"{key}={_shown(there.get(key))} there, {_shown(here.get(key))} here"
            for key in dict.fromkeys((*here, *there))
            if here.get(key) != there.get(key) and key not in _LENGTHS
        ]
        now = inputs_of(config)
        found += [
            f"{path} has changed since"
            for path, facts in self.inputs.items()
            if path in now and not _is_same(now[path], facts)
        ]
        more = [f"and {len(found) - _MAX_NAMED} more"] if len(found) > _MAX_NAMED else []
        return found[:_MAX_NAMED] + more

    def is_longer(self, config: Config) -> bool:
        """Whether the configuration asks for more steps than this run had."""
        here = settings_of(config)
        return any(_length(here[key]) > _length(self.settings.get(key)) for key in _LENGTHS)

    def _known_settings(self) -> dict[str, Any]:
        """The settings under the keys of today; those that the record lacks have their defaults.

        A release that did not have a key did what is the default now.
        """
        defaults, taken = settings_of(Config()), dict(self.settings)
        known: dict[str, Any] = {}
        for key, default in defaults.items():
            entries = {name: taken[name] for name in taken if name.startswith(f"{key}.")}
            known |= entries or {key: taken.get(key, taken.get(earlier_key(key), default))}
        return known

    def length(self) -> str:
        """The length of the run in words, for messages."""
        if self.stage == "rl":
            return f"num_steps={self.settings.get('num_steps')}"
        epochs, steps = (self.settings.get(key) for key in ("fit.num_epochs", "fit.max_steps"))
        return f"fit.num_epochs={epochs}" + (f", fit.max_steps={steps}" if steps else "")


def write_finished(folder: Path, config: Config) -> None:
    """Record that the run of this configuration has ended well in the folder."""
    finished = Finished(
        stage=config.stage.name,
        settings=settings_of(config),
        inputs=inputs_of(config),
        model=files_of(folder / "model"),
        at=datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    )
    text = json.dumps(dataclasses.asdict(finished), indent=1)
    write_atomically(folder / FILE_NAME, text + "\n")


def read_finished(folder: Path) -> Finished | None:
    """The record; None if there is none that can be read."""
    try:
        values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        finished = Finished(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    maps = (finished.settings, finished.inputs, finished.model)
    lengths = finished.settings if isinstance(finished.settings, dict) else {}
    is_record = (
        all(isinstance(each, dict) for each in maps)
        and all(isinstance(text, str) for text in (finished.stage, finished.at))
        and all(isinstance(lengths.get(key), int | float | None) for key in _LENGTHS)
    )
    return finished if is_record else None


def settings_of(config: Config) -> dict[str, Any]:
    """Value of every key that may change the result, by dotted name, as JSON reads it back."""
    values = dict(_flat(dataclasses.asdict(config), ""))
    return json.loads(json.dumps(values, default=str))


def inputs_of(config: Config) -> dict[str, Any]:
    """Size and time of the local files that the configuration names; of a folder, all below it."""
    found: dict[str, Any] = {}
    paths = [attrgetter(key.name)(config) for key in path_keys()]
    functions = [entry["path"] if isinstance(entry, dict) else entry for entry in _rewards(config)]
    paths += [str(text).rpartition(":")[0] for text in functions]
    for path in paths:
        if isinstance(path, str) and path and Path(path).expanduser().exists():
            found[path] = _facts(Path(path).expanduser())
    return json.loads(json.dumps(found))


def files_of(folder: Path) -> dict[str, int]:
    """Size of every file below a folder, by its name there; empty if there is no folder."""
    if not folder.is_dir():
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _rewards(config: Config) -> list[Any]:
    return [entry for entry in config.reward.functions if isinstance(entry, str | dict)]


def _facts(path: Path) -> Any:
    if path.is_dir():
        # Hidden folders are caches and records of tools; no reader looks into them.
        files = sorted(
            file
            for file in path.rglob("*")
            if not any(part.startswith((".", "__")) for part in file.relative_to(path).parts[:-1])
            and file.is_file()
        )
        facts = {file.relative_to(path).as_posix(): _facts(file) for file in files}
        return {_BELOW: len(files), **facts}
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _is_same(now: Any, then: Any) -> bool:
    """Whether the facts are the same, as far as a record of an earlier release has them."""
    if isinstance(now, dict) and isinstance(then, dict) and _BELOW not in then:
        return {name: facts for name, facts in now.items() if _is_own(name)} == then
    return now == then


def _is_own(name: str) -> bool:
    return "/" not in name and name != _BELOW


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}{name}"
        if key in _IGNORED or key.startswith(_IGNORED_GROUPS):
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _length(value: Any) -> float:
    return float("inf") if value is None else float(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:60] + "..."
