"""A checkpoint folder as the driver reads it: marker, manifest and the driver's own state.

Every damage is a sentence. A checkpoint of a release without manifests has an empty marker: its
files can be read, but not verified.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.checkpoint_files.facts import FACTS_FILE
from rlhf_ray.checkpoint_files.manifest import (
    MANIFEST_FILE,
    Manifest,
    digest_of,
    listed,
    size_problems,
)
from rlhf_ray.config.errors import RequestError, RunFailed

MARKER = "COMMITTED"
STATE_FILE = "run.json"
# The marker holds the hash of the manifest, so that a lost manifest is no older release.
_MARKER_TEXT = "manifest {digest}\n"


class DamagedCheckpointError(RequestError):
    """A checkpoint that is not as it was written; the message names the file."""


def marker_text(manifest: str) -> str:
    """The content of the marker of a checkpoint with this manifest."""
    return _MARKER_TEXT.format(digest=digest_of(manifest.encode()))


def is_committed(folder: Path) -> bool:
    """Whether the folder was written to the end; False if it cannot be looked at."""
    try:
        return (folder / MARKER).is_file()
    except OSError:  # A name that is too long, a folder that may not be entered.
        return False


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a committed checkpoint; None for one of a release without manifests.

    Raises:
        DamagedCheckpointError: it is missing or damaged.
    """
    marker = _read(folder, MARKER).decode("utf-8", errors="replace")
    if not marker.strip():
        if (folder / MANIFEST_FILE).exists():
            raise damaged(
                folder, f"{MARKER} is empty, and {MANIFEST_FILE} is there: it was cut off"
            )
        return None
    text = _read(folder, MANIFEST_FILE).decode("utf-8", errors="replace")
    if marker_text(text) != marker:
        raise damaged(folder, f"{MANIFEST_FILE} is not the one that {MARKER} names")
    try:
        return Manifest.from_text(text)
    except ValueError as error:
        raise damaged(folder, f"{MANIFEST_FILE} cannot be read: {error}") from None


def read_state(folder: Path) -> dict[str, Any]:
    """The driver's state of a committed checkpoint, with its `step`.

    Raises:
        DamagedCheckpointError: it is missing, damaged, or not as it was written.
    """
    manifest, content = read_manifest(folder), _read(folder, STATE_FILE)
    if manifest is not None:
        seal = manifest.files.get(STATE_FILE)
        if seal is None or digest_of(content) != seal.digest:
            raise damaged(folder, f"{STATE_FILE} has changed since it was written")
    try:
        state = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise damaged(folder, f"{STATE_FILE} is no JSON ({error})") from None
    if not isinstance(state, dict):
        raise damaged(folder, f"{STATE_FILE} is a {type(state).__name__}, and not a mapping")
    step = state.get("step")
    if type(step) is not int or step < 0:
        raise damaged(folder, f"{STATE_FILE} has step={step!r}, and not a number of steps")
    return state


def check_whole(folder: Path, *, parts: Collection[str]) -> bool:
    """Check what costs no reading of large files: marker, manifest, sizes, state, facts of roles.

    Args:
        parts: keys of the state that the run needs, next to its step and identity.

    Returns:
        whether there is a manifest, so that the content can be verified too.

    Raises:
        DamagedCheckpointError: the checkpoint is damaged; names the files.
    """
    manifest = read_manifest(folder)
    if manifest is not None:
        if problems := size_problems(folder, manifest.files):
            raise damaged(folder, listed(problems))
        for name, seal in manifest.files.items():
            # A layout that is read from a changed file would be refused in place of the file.
            if name.endswith(f"/{FACTS_FILE}") and digest_of(_read(folder, name)) != seal.digest:
                raise damaged(folder, f"{name} has changed since it was written")
    state = read_state(folder)
    for name in ("identity", *parts):
        if not isinstance(state.get(name), dict):
            raise damaged(folder, f"{STATE_FILE} has no {name}")
    return manifest is not None


@contextmanager
def reading_state(folder: Path) -> Iterator[None]:
    """Turn what a damaged state makes of the code that restores it into a sentence."""
    try:
        yield
    except (RequestError, RunFailed):
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise damaged(folder, f"{STATE_FILE} cannot be restored ({what})") from error


def problem_of(check: Callable[[], object]) -> str | None:
    """The damage that a check finds, as a sentence; None if it finds none."""
    try:
        check()
    except DamagedCheckpointError as error:
        return str(error)
    return None


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise damaged(folder, f"{name} is missing") from None
    except OSError as error:
        raise damaged(folder, f"{name} cannot be read ({error.strerror or error})") from None


def damaged(folder: Path, what: str) -> DamagedCheckpointError:
    """The error about a damaged checkpoint."""
    return DamagedCheckpointError(f"the checkpoint {folder} is damaged: {what}")
