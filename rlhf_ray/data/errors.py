"""What is wrong with somebody's data, in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rlhf_ray.config.errors import RequestError

_MAX_NAMES = 12


class DataError(RequestError):
    """Rows cannot be read as configured; the message says where and what to change."""


def among(name: str, known: Iterable[str]) -> str:
    """Words that name what there is instead of `name`, the nearest first."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:_MAX_NAMES]) or "none"
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}There are: {listed}{more}"
