"""Support of the sampling distribution: the tokens that could be sampled, [N, K] int32.

Top-k, top-p and min-p sample from a part of the vocabulary. A row holds the ids of that part in
any order, filled up with -1; the row of a token that was not sampled holds -1 only. `None` in the
place of a tensor means that every token was sampled from the whole vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

NO_TOKEN = -1


def join_supports(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Concatenate parts [N_i, K_i], filled up on the right to the widest.

    Args:
        parts: None for tokens without a support: they were not sampled, or none of the parts has
            one.
        sizes: tokens N_i of every part.

    Returns:
        [N, K] int32, or None if no part has a support.
    """
    known = [part for part in parts if part is not None]
    if not known:
        return None
    width = max(part.shape[1] for part in known)
    rows = [
        # Parts are tensors of different widths, because top-p leaves more tokens in one group
        # than in another.
        torch.full((size, width), NO_TOKEN, dtype=torch.int32)
        if part is None
        else pad(part, (0, width - part.shape[1]), value=NO_TOKEN)
        for part, size in zip(parts, sizes, strict=True)
    ]
    return torch.cat(rows)
