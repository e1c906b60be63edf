"""Limit on the length of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.sets import T
from rlhf_ray.data.examples.spans import MarkedText
from rlhf_ray.data.rejects import INVALID, Rejects
from rlhf_ray.data.rows import DataError, Row
from rlhf_ray.records.supervised import LabelledTokens

TOO_LONG = "too long"
NOTHING_LEFT = "cut down to nothing to learn"


@dataclass(slots=True)
class LengthLimit:
    """Cuts or skips examples longer than `examples.max_tokens`, and counts the cuts.

    Attributes:
        max_characters: a text of more is too long without being tokenised, which takes minutes
            for megabytes; see `encoding.most_characters`.
    """

    examples: ExamplesConfig
    rejects: Rejects
    max_characters: int
    num_cut: int = 0

    def leaves_out(self, row: Row, num_characters: int) -> bool:
        """Whether the row is skipped because of its characters alone.

        Raises:
            DataError: it is too long, and the configuration ends the run.
        """
        if num_characters <= self.max_characters or self.examples.on_long == "cut":
            return False
        limit = self.examples.max_tokens
        message = f"{row.where}: has {num_characters} characters"
        if self.examples.on_long == "error":
            raise _too_long(message, limit)
        self.rejects.count(TOO_LONG, f"{message}, more than {limit} tokens can hold")
        return True

    def shortened(self, row: Row, texts: Sequence[MarkedText]) -> tuple[MarkedText, ...] | None:
        """The texts, cut where they are surely longer than the limit; None if the row is skipped.

        The cut is at twice the characters that `examples.max_tokens` can hold: the tokens up to the
        limit are those of the whole text, and `fit` cuts the others.

        Raises:
            DataError: see `leaves_out`.
        """
        num_characters = max(len(text.text) for text in texts)
        if self.leaves_out(row, num_characters):
            return None
        cut = tuple(_shortened(text, 2 * self.max_characters) for text in texts)
        if all(text.answers for text in cut):
            return cut
        message = f"{row.where}: has {num_characters} characters, cut to {self.examples.max_tokens}"
        self.rejects.count(NOTHING_LEFT, f"{message} tokens")
        return None

    def fit(
        self,
        row: Row,
        samples: Sequence[LabelledTokens],
        build: Callable[[tuple[LabelledTokens, ...]], T],
    ) -> T | None:
        """Build the example of these samples, cut if configured; None if it is skipped.

        A cut removes tokens from the end. An example without anything left to learn (no token of
        an answer, or the same tokens in two answers of a ranking) is skipped.

        Raises:
            DataError: the example is too long or invalid, and the configuration ends the run.
        """
        limit = self.examples.max_tokens
        longest = max(len(sample.token_ids) for sample in samples)
        if longest <= limit:
            try:
                return build(tuple(samples))
            except ValueError as error:
                self.rejects.bad_row(INVALID, row.where, str(error))
                return None
        message = f"{row.where}: has {longest} tokens"
        if self.examples.on_long == "error":
            raise _too_long(message, limit)
        if self.examples.on_long == "skip":
            self.rejects.count(TOO_LONG, f"{message}, limit {limit}")
            return None
        try:
            example = build(tuple(_cut(sample, limit) for sample in samples))
        except ValueError as error:
            self.rejects.count(NOTHING_LEFT, f"{message}, cut to {limit}: {error}")
            return None
        self.num_cut += 1
        return example


def _too_long(message: str, limit: int) -> DataError:
    return DataError(
        f"{message}, and examples.max_tokens is {limit} (what the model reads, where that is "
        "less). Raise it, cut such rows with examples.on_long=cut, or leave them out with "
        "examples.on_long=skip"
    )


def _shortened(text: MarkedText, end: int) -> MarkedText:
    if len(text.text) <= end:
        return text
    answers = tuple((a, min(b, end)) for a, b in text.answers if a < end)
    return dataclasses.replace(text, text=text.text[:end], answers=answers)


def _cut(sample: LabelledTokens, limit: int) -> LabelledTokens:
    # A copy: a slice would keep the whole of a long text in memory.
    return LabelledTokens(
        token_ids=sample.token_ids[:limit].clone(), loss_mask=sample.loss_mask[:limit].clone()
    )
