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
_MOVED_MODULES = {"rlhf_ray.tasks.": "rlhf_ray.recipes."}


def moved_path(path: str) -> str | None:
    """The new import path of `package.module:name`, or None where the path has not changed."""
    for old, new in _MOVED_MODULES.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return None


def earlier_key(key: str) -> str:
    """The name of a key in release 0.1."""
    return next((old for old, new in RENAMED_KEYS.items() if new == key), key)
