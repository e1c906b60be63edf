"""Normalization of wrongly decoded text and of control characters."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from rlhf_ray.data.prepare.cleaning.steps import Notes
from rlhf_ray.data.prepare.conversion.contents import Sample
from rlhf_ray.data.prepare.libraries import library

# Most text is ASCII without control characters. It needs no change, and this is faster than ftfy.
_WORD = re.compile(r"\w+")
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")


class TextNormalization:
    """Repairs mojibake ("schÃ¶n"), control characters, line ends and broken surrogates, with ftfy.

    Curled quotes, ligatures, full-width letters and HTML stay, because a writer may mean them.
    """

    def __init__(self, notes: Notes) -> None:
        self._ftfy = library("ftfy", key="prepare.mend_encoding")
        self._config = self._ftfy.TextFixerConfig(
            unescape_html=False,
            uncurl_quotes=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            explain=False,
        )
        self._notes = notes

    def apply(self, sample: Sample) -> Sample:
        content = sample.content.mapped(self._normalized)
        if content == sample.content:
            return sample
        if _is_about_encoding(sample.content.texts(), content.texts()):
            self._notes.add(sample.source, "encoding not mended, because the text has both forms")
            return sample
        self._notes.add(sample.source, "encoding mended")
        return dataclasses.replace(sample, content=content)

    def _normalized(self, text: str) -> str:
        if _PLAIN.fullmatch(text):
            return text
        return self._ftfy.fix_text(text, self._config)


def _is_about_encoding(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether a word that mending writes is in the texts already, next to its broken form."""
    known = {word for text in before for word in _words(text)}
    return any(
        word in known
        for old, new in zip(before, after, strict=True)
        if old != new
        for word in _words(new) - _words(old)
    )


def _words(text: str) -> Counter[str]:
    return Counter(word for word in _WORD.findall(text) if not word.isascii())
