"""Choice of held-out rows, independent of the other rows."""

from __future__ import annotations

import json
from array import array
from typing import Any

import numpy as np

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


class Overlap:
    """Counts held-out rows that are learnt from too, by hashes of 64 bits."""

    def __init__(self) -> None:
        # By side of the split: 16 bytes for each row.
        self._questions = {False: array("q"), True: array("q")}
        self._wholes = {False: array("q"), True: array("q")}

    def add(self, *, held_out: bool, question: str | None, whole: str) -> None:
        """Add a row.

        Args:
            question: None if the row has none.
            whole: all that is learnt of the row, with its context.
        """
        if question is not None:
            self._questions[held_out].append(hash(question))
        self._wholes[held_out].append(hash(whole))

    def lines(self) -> list[str]:
        """Lines for the screen; none if the sides share nothing."""
        wholes, questions = _num_shared(self._wholes), _num_shared(self._questions)
        lines = []
        if wholes:
            lines.append(
                "warning: held-out rows that are learnt from too: "
                f"{_share(wholes, len(self._wholes[True]))}; their loss says nothing about other "
                "rows"
            )
        if questions > wholes:
            lines.append(
                "warning: held-out rows whose question is also learnt from: "
                f"{_share(questions, len(self._questions[True]))}"
            )
        return lines


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({count / of:.0%})"


def _num_shared(sides: dict[bool, array[int]]) -> int:
    held_out, learnt = (np.array(sides[side], dtype=np.int64) for side in (True, False))
    return int(np.isin(held_out, learnt).sum())
