"""The first example of a stage with the part of it that is learnt, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_ray.observe.samples.sample_lines import masked_example
from rlhf_ray.records.preferences import Feedback, Ranking
from rlhf_ray.records.supervised import LabelledTokens

_MOST_ANSWERS = 4


def first_example(row: LabelledTokens | Ranking | Feedback, tokenizer: Any) -> str:
    """The example in lines; of a ranking every answer, the best first."""
    parts = [f"{title}\n{_text(sample, tokenizer)}" for title, sample in _samples(row)]
    return "\n".join(parts)


def _samples(row: LabelledTokens | Ranking | Feedback) -> Sequence[tuple[str, LabelledTokens]]:
    if isinstance(row, Ranking):
        count = len(row.answers)
        return [
            (f"first example, answer {number} of {count}, the best first:", answer)
            for number, answer in enumerate(row.answers[:_MOST_ANSWERS], start=1)
        ]
    if isinstance(row, Feedback):
        return [(f"first example, judged {'good' if row.is_good else 'bad'}:", row.sample)]
    return [("first example:", row)]


def _text(sample: LabelledTokens, tokenizer: Any) -> str:
    def decode(token_ids: Sequence[int]) -> str:
        # With the tokens of the template: whether they are learnt is what one looks for here.
        return tokenizer.decode(token_ids, skip_special_tokens=False)

    return masked_example(sample.token_ids.tolist(), sample.loss_mask.tolist(), decode)
