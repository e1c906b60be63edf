"""Decontamination: removal of training samples that contain an evaluation prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rlhf_ray.data.prepare.cleaning.words import words_of
from rlhf_ray.data.prepare.conversion.contents import (
    Demonstration,
    Removal,
    Sample,
    Text,
    removal_of,
)

LEAK = "evaluation leak"


class Decontamination:
    """Removes a sample that shares `num_words` words in a row with an evaluation prompt.

    Brown et al. 2020 (arXiv:2005.14165, appendix C) use overlaps of 13 words. Case and punctuation
    do not count. A prompt of fewer words must be a whole text of the sample, because so few words
    in a row occur by chance.

    The evaluation prompts are held in memory as one number for each group of words.

    Args:
        evaluation: samples of the evaluation sets; the last question of a chat is its prompt.
    """

    def __init__(self, evaluation: Iterable[Sample], *, num_words: int) -> None:
        self._num_words = num_words
        self._whole: dict[int, str] = {}
        self._groups: dict[int, str] = {}
        for sample in evaluation:
            found_in = f"{sample.source}, {sample.where}"
            words = words_of(_question(sample))
            if len(words) >= num_words:
                for group in self._hashes(words):
                    self._groups.setdefault(group, found_in)
            elif words:
                self._whole.setdefault(hash(tuple(words)), found_in)

    def apply(self, sample: Sample) -> Sample | Removal:
        for text in sample.content.texts():
            words = words_of(text)
            origin = self._whole.get(hash(tuple(words)))
            if origin is not None:
                return removal_of(sample, LEAK, f"a text is a prompt of {origin}")
            for group in self._hashes(words):
                if group in self._groups:
                    detail = f"{self._num_words} words in a row of {self._groups[group]}"
                    return removal_of(sample, LEAK, detail)
        return sample

    def _hashes(self, words: list[str]) -> Iterator[int]:
        for start in range(len(words) - self._num_words + 1):
            yield hash(tuple(words[start : start + self._num_words]))


def _question(sample: Sample) -> str:
    """The last message of the user, or the whole text."""
    content = sample.content
    if isinstance(content, Text):
        return content.text
    messages = content.messages if isinstance(content, Demonstration) else content.prompt
    return next((m.content for m in reversed(messages) if m.role == "user"), content.opening())
