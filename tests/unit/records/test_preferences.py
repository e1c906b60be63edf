"""Rankings and feedback refuse what nothing can be learnt from."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens


def sample(*token_ids: int, answer: bool = True) -> LabelledTokens:
    mask = [False] + [answer] * (len(token_ids) - 1)
    return LabelledTokens(token_ids=torch.tensor(token_ids), loss_mask=torch.tensor(mask))


def test_ranking() -> None:
    good = (sample(1, 2), sample(1, 3), sample(1, 2, 2))
    assert Ranking(answers=good, margin=0.5).margin == 0.5
    for answers, margin, message in (
        (good[:1], None, "needs at least 2 answers, got 1"),
        ((*good, sample(1, 3)), None, "same tokens"),
        ((*good, sample(1, 4, answer=False)), None, "no token on its loss mask"),
        (good, -1.0, "margin=-1.0"),
        (good, math.nan, "margin=nan"),
    ):
        with pytest.raises(ValueError, match=message):
            Ranking(answers=answers, margin=margin)


def test_feedback() -> None:
    assert Feedback(sample=sample(1, 2), is_good=True).is_good
    with pytest.raises(ValueError, match="no token on its loss mask"):
        Feedback(sample=sample(1, 2, answer=False), is_good=False)
