"""Choice of held-out rows, independent of the other rows."""

from __future__ import annotations

import json
from typing import Any

from rlhf_ray.data.prompts.order import stable_seed

_SEEDS = 2**62


def is_held_out(key: str, share: float) -> bool:
    """Whether the rows with this key are held out.

    The choice depends only on key and share: not on other rows, their order or the seed of a run.
    A larger share holds out all rows of a smaller one and more.

    Args:
        share: share of the keys, from 0 to below 1.
    """
    return stable_seed("held out", key) < share * _SEEDS


def content_key(content: Any) -> str:
    """The key of a row without an id: its question, or all of it if it has no question.

    Rows with the same question have the same key, so that a prompt is never on both sides.

    Args:
        content: plain JSON values.
    """
    return json.dumps(content, ensure_ascii=False, sort_keys=True, default=str)
