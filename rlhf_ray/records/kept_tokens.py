"""Sets of tokens that could be sampled: one row of token ids per token, [N, K] int32.

Top-k, top-p and min-p sample from a part of the vocabulary. A row holds that part, in any order,
and -1 where there is no more; rows of tokens that were not sampled hold nothing. K = 0 says that
all of the vocabulary was sampled from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

NO_TOKEN = -1


def whole_vocabulary(num_tokens: int) -> Tensor:
    """Rows of tokens that were sampled from the whole vocabulary, or not sampled; [N, 0] int32."""
    return torch.zeros(num_tokens, 0, dtype=torch.int32)


def join_kept(parts: Sequence[Tensor]) -> Tensor:
    """Parts [N_i, K_i] below each other, filled up on the right to the widest."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([pad(part, (0, width - part.shape[1]), value=NO_TOKEN) for part in parts])
