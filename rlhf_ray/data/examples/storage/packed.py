"""Texts one after the other on disk, and the pieces into which the row of them is cut."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.data.examples.storage.scratch_file import ScratchFile
from rlhf_ray.data.prompts.order import stable_seed
from rlhf_ray.mapped_rows import RowsOnDemand
from rlhf_ray.records.supervised import LabelledTokens

_TOKEN = np.dtype("<i4")


class StoredTexts:
    """Token ids of texts, four bytes each, on disk.

    Args:
        folder: see `ScratchFile`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = ScratchFile(folder)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of every text [D] int64."""
        return np.diff(np.array(self._starts, dtype=np.int64))

    def length(self, text: int) -> int:
        """Number of tokens of a text."""
        return self._starts[text + 1] - self._starts[text]

    def append(self, token_ids: Sequence[int]) -> None:
        """Write a text; see `ScratchFile.append`."""
        self._file.append(np.array(token_ids, dtype=_TOKEN).tobytes())
        self._starts.append(self._starts[-1] + len(token_ids))

    def read(self, text: int, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of a text, [n] int32."""
        first = (self._starts[text] + start) * _TOKEN.itemsize
        return np.frombuffer(self._file.read(first, (stop - start) * _TOKEN.itemsize), _TOKEN)


class PackedTexts(RowsOnDemand[LabelledTokens]):
    """Pieces of `max_tokens` of all texts, one after the other; the last one may be shorter.

    A last piece of a single token is left out. Memory has sixteen bytes of every text.

    Args:
        seed: of the order of the texts; None keeps them in the order of the source.
    """

    def __init__(self, texts: StoredTexts, *, max_tokens: int, seed: int | None) -> None:
        self._texts = texts
        self._max_tokens = max_tokens
        self._order = array("q", range(len(texts)))
        if seed is not None:
            random.Random(stable_seed(seed, "pack")).shuffle(self._order)
        order = np.array(self._order, dtype=np.int64)
        # Where each text ends in the row of all.
        self._ends = np.cumsum(texts.lengths[order])
        self._num_tokens = int(self._ends[-1]) if len(order) else 0

    def __len__(self) -> int:
        whole, rest = divmod(self._num_tokens, self._max_tokens)
        return whole + (rest > 1)

    def _row(self, number: int) -> LabelledTokens:
        start = number * self._max_tokens
        stop = min(start + self._max_tokens, self._num_tokens)
        return all_but_first(np.concatenate(self._between(start, stop)))

    def _between(self, start: int, stop: int) -> list[np.ndarray]:
        """The tokens of these places in the row of all texts, text by text."""
        pieces = []
        place = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            text, end = self._order[place], int(self._ends[place])
            begin = end - self._texts.length(text)
            upto = min(stop, end)
            pieces.append(self._texts.read(text, start - begin, upto - begin))
            start, place = upto, place + 1
        return pieces


def all_but_first(token_ids: Sequence[int] | np.ndarray) -> LabelledTokens:
    """A sample of which every token but the first is predicted."""
    loss_mask = torch.ones(len(token_ids), dtype=torch.bool)
    loss_mask[0] = False
    ids = torch.from_numpy(np.array(token_ids, dtype=np.int64))
    return LabelledTokens(token_ids=ids, loss_mask=loss_mask)
