"""Import paths in configurations of earlier releases.

Release 0.1 had the rows and rewards of the recipes in `rlhf_ray.tasks`. Remove this module in the
second release after it.
"""

from __future__ import annotations

_MOVED = {"rlhf_ray.tasks.": "rlhf_ray.recipes."}


def moved_path(path: str) -> str | None:
    """The new import path of `package.module:name`, or None where the path has not changed."""
    for old, new in _MOVED.items():
        if path.startswith(old):
            return new + path.removeprefix(old)
    return None
