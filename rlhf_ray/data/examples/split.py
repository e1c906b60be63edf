"""Which rows are held out: the same ones whatever rows come or go."""

from __future__ import annotations

import json
from typing import Any

from rlhf_ray.data.prompts.order import stable_seed

_SEEDS = 2**62


def is_held_out(key: str, share: float) -> bool:
    """Whether the rows with this key are held out.

    It depends on key and share alone: neither on the other rows, nor on their order, nor on the
    seed of a run. A larger share holds out the rows of a smaller one and more.

    Args:
        share: of the keys, from 0 to below 1.
    """
    return stable_seed("held out", key) < share * _SEEDS


def content_key(content: Any) -> str:
    """The key of a row without an id: what it asks, or all of it where it asks nothing.

    Rows that ask the same have one key, so that a prompt is never on both sides.

    Args:
        content: plain JSON values.
    """
    return json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
