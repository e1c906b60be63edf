"""Examples on disk: memory has eight bytes of each, whatever its length.

A token takes four bytes and a bit of the loss mask; int64 tokens and masks in memory take nine.
"""

from __future__ import annotations

import math
import struct
from array import array
from pathlib import Path
from typing import Generic, cast

import numpy as np
import torch

from rlhf_ray.data.examples.sets import T, samples_of
from rlhf_ray.data.examples.storage.scratch_file import ScratchFile
from rlhf_ray.mapped_rows import RowsOnDemand
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens

# Kind of record, number of its samples, its margin or label.
_HEAD = struct.Struct("<iid")
_LABELLED, _RANKING, _FEEDBACK = range(3)
_LENGTH = np.dtype("<i4")
_TOKEN = np.dtype("<i4")


class StoredExamples(RowsOnDemand[T], Generic[T]):
    """A sequence of examples that grows by `append`. An example that is taken out is a new object.

    Args:
        folder: see `ScratchFile`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = ScratchFile(folder)
        self._starts = array("q", [0])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def _row(self, number: int) -> T:
        start = self._starts[number]
        return cast(T, _unpacked(self._file.read(start, self._starts[number + 1] - start)))

    def append(self, example: T) -> None:
        """Write an example.

        Raises:
            DiskFull: see `ScratchFile.append`.
        """
        self._file.append(_packed(example))
        self._starts.append(len(self._file))


def _packed(example: LabelledTokens | Ranking | Feedback) -> bytes:
    samples = samples_of(example)
    kind, value = _LABELLED, math.nan
    if isinstance(example, Ranking):
        kind, value = _RANKING, math.nan if example.margin is None else example.margin
    elif isinstance(example, Feedback):
        kind, value = _FEEDBACK, float(example.is_good)
    lengths = np.array([len(sample.token_ids) for sample in samples], dtype=_LENGTH)
    token_ids = torch.cat([sample.token_ids for sample in samples]).numpy()
    assert token_ids.size == 0 or token_ids.max() < 2**31, "a token id of more than 31 bits"
    mask = torch.cat([sample.loss_mask for sample in samples]).numpy()
    return b"".join(
        (
            _HEAD.pack(kind, len(samples), value),
            lengths.tobytes(),
            token_ids.astype(_TOKEN).tobytes(),
            np.packbits(mask).tobytes(),
        )
    )


def _unpacked(record: bytes) -> LabelledTokens | Ranking | Feedback:
    kind, num_samples, value = _HEAD.unpack_from(record)
    place = _HEAD.size
    lengths = np.frombuffer(record, _LENGTH, num_samples, place)
    place += lengths.nbytes
    num_tokens = int(lengths.sum())
    token_ids = np.frombuffer(record, _TOKEN, num_tokens, place)
    place += token_ids.nbytes
    mask = np.unpackbits(np.frombuffer(record, np.uint8, offset=place), count=num_tokens)
    ends = lengths.cumsum()
    # A copy for each sample: a slice would keep, and send, the memory of all.
    samples = tuple(
        LabelledTokens(
            token_ids=torch.from_numpy(token_ids[end - length : end].astype(np.int64)),
            loss_mask=torch.from_numpy(mask[end - length : end].astype(np.bool_)),
        )
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
    )
    if kind == _RANKING:
        return Ranking(answers=samples, margin=None if math.isnan(value) else value)
    return Feedback(sample=samples[0], is_good=bool(value)) if kind == _FEEDBACK else samples[0]
