"""The first example with its mask, for every kind of row."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.stages.fit.first_example import first_example


class Words:
    """A tokenizer of numbered words."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        assert not skip_special_tokens, "the end of an answer is learnt, too"
        return "".join(f" w{token}" for token in token_ids)


def sample(*tokens: int) -> LabelledTokens:
    mask = [place > 1 for place in range(len(tokens))]
    return LabelledTokens(token_ids=torch.tensor(tokens), loss_mask=torch.tensor(mask))


@pytest.mark.parametrize(
    ("row", "titles", "texts"),
    [
        (sample(1, 2, 3, 4), ["first example:"], [" w1 w2« w3 w4»"]),
        (
            Ranking(answers=(sample(1, 2, 3), sample(1, 2, 5)), margin=None),
            [
                "first example, answer 1 of 2, the best first:",
                "first example, answer 2 of 2, the best first:",
            ],
            [" w1 w2« w3»", " w1 w2« w5»"],
        ),
        (
            Feedback(sample=sample(1, 2, 3), is_good=False),
            ["first example, judged bad:"],
            [" w1 w2« w3»"],
        ),
    ],
)
def test_what_is_learnt_is_marked(row, titles, texts):
    lines = first_example(row, Words()).split("\n")
    assert lines[::3] == titles
    assert lines[2::3] == [f"  text   | {text}" for text in texts]
