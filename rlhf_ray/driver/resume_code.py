"""The reward functions of a run and of its checkpoint: entries, and hashes of their code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.reward_entries import read_functions

FUNCTIONS = "reward.functions"


def changed_code(saved: Mapping[str, str], here: Mapping[str, str]) -> dict[str, str]:
    """A sentence for `reward.functions` if the code of a file has changed.

    Args:
        saved, here: hashes by path. A release may have hashed fewer of the files.
    """
    changed = [path for path, digest in here.items() if digest != saved.get(path, digest)]
    # A module may have been found at another path, in the place of one that is gone.
    if not set(saved) <= set(here):
        known = set(saved.values())
        changed += [path for path in here if path not in saved and here[path] not in known]
    if not changed:
        return {}
    return {FUNCTIONS: f"{FUNCTIONS}: the code in {', '.join(changed)} has changed"}


def entries_of(functions: Any) -> Any:
    """Entries of `reward.functions` in their full form; as they are where they cannot be read."""
    try:
        return read_functions(functions)
    except (RequestError, TypeError):
        return functions


def is_moved_code(
    there: Any, here: Any, saved: Mapping[str, str], hashes: Mapping[str, str]
) -> bool:
    """Whether the entries differ in the places of their files alone, whose code is the same.

    Args:
        there, here: `reward.functions` of the checkpoint and of the run.
        saved, hashes: see `changed_code`.
    """
    if not saved or sorted(saved.values()) != sorted(hashes.values()):
        return False
    known, own = _by_code(there, saved), _by_code(here, hashes)
    return known is not None and known == own


def _by_code(functions: Any, hashes: Mapping[str, str]) -> list[Any] | None:
    """The entries with the hash of the file in the place of its path; None if one is unknown."""
    entries = entries_of(functions)
    if not isinstance(entries, tuple):
        return None
    found = []
    for entry in entries:
        file, _, attribute = entry.path.rpartition(":")
        code = hashes.get(file, file)
        found.append((code, attribute, entry.name, entry.weight, entry.arguments))
    return found
