"""Limits on the length of a sample, in characters or tokens."""

from __future__ import annotations

from collections.abc import Callable

from rlhf_ray.data.prepare.conversion.contents import Removal, Sample, removal_of
from rlhf_ray.data.prepare.conversion.mapping import BROKEN_ROW
from rlhf_ray.data.rows import BadCell

TOO_SHORT, TOO_LONG = "too short", "too long"
# From a text to its number of tokens, or to the reason why it cannot be tokenised.
CountTokens = Callable[[str], int | BadCell]


class CharacterLimits:
    """Bounds on the characters of the longest sequence that a model would read at once."""

    def __init__(self, *, least: int | None, most: int | None) -> None:
        self._least = least
        self._most = most

    def apply(self, sample: Sample) -> Sample | Removal:
        count = longest_sequence(sample)
        if self._least is not None and count < self._least:
            return removal_of(
                sample, TOO_SHORT, f"{count} characters; prepare.min_characters={self._least}"
            )
        if self._most is not None and count > self._most:
            return removal_of(
                sample, TOO_LONG, f"{count} characters; prepare.max_characters={self._most}"
            )
        return sample


class TokenLimit:
    """An upper bound on the tokens of the longest sequence.

    Args:
        max_characters: a text of more is too long without being tokenised.
    """

    def __init__(self, count_tokens: CountTokens, *, most: int, max_characters: int) -> None:
        self._count_tokens = count_tokens
        self._most = most
        self._max_characters = max_characters

    def apply(self, sample: Sample) -> Sample | Removal:
        characters = longest_sequence(sample)
        if characters > self._max_characters:
            detail = f"{characters} characters; prepare.max_tokens={self._most}"
            return removal_of(sample, TOO_LONG, detail)
        counts: list[int] = []
        for text in sample.content.sequences():
            count = self._count_tokens(text)
            if isinstance(count, BadCell):
                return removal_of(sample, BROKEN_ROW, str(count))
            counts.append(count)
        if max(counts) > self._most:
            detail = f"{max(counts)} tokens; prepare.max_tokens={self._most}"
            return removal_of(sample, TOO_LONG, detail)
        return sample


def longest_sequence(sample: Sample) -> int:
    """Characters of the longest sequence."""
    return max(len(text) for text in sample.content.sequences())
