"""Names in configurations and checkpoints of release 0.1, and what replaced them.

A configuration with an old name is refused with the new one. A checkpoint with an old name is read.
Remove this module in the second release after 0.1.
"""

from __future__ import annotations

# Old keys to new ones.
RENAMED_KEYS = {
    "algorithm.positive_coefficient": "algorithm.nll_coefficient",
    "examples.good_column": "examples.label_column",
    "fit.samples_per_step": "fit.batch_size",
}
# Old groups to new ones; the keys in them keep their names.
_RENAMED_GROUPS = {"sampling": "rollout_selection"}
_MOVED_MODULES = {"rlhf_ray.tasks.": "rlhf_ray.recipes."}


def moved_path(path: str) -> str | None:
    """The new import path of `package.module:name`, or None where the path has not changed."""
    for old, new in _MOVED_MODULES.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return None


def renamed_key(name: str) -> str | None:
    """The present name of a key or group of release 0.1; None if it was not renamed."""
    group, dot, rest = name.partition(".")
    if group in _RENAMED_GROUPS:
        return f"{_RENAMED_GROUPS[group]}{dot}{rest}"
    return RENAMED_KEYS.get(name)


def earlier_key(key: str) -> str:
    """The name of a key in release 0.1."""
    group, dot, rest = key.partition(".")
    for old, new in _RENAMED_GROUPS.items():
        if group == new:
            return f"{old}{dot}{rest}"
    return next((old for old, new in RENAMED_KEYS.items() if new == key), key)
