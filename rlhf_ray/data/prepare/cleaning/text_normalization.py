"""Normalization of wrongly decoded text and of control characters."""

from __future__ import annotations

import dataclasses
import re

from rlhf_ray.data.prepare.cleaning.steps import Notes
from rlhf_ray.data.prepare.conversion.contents import Sample
from rlhf_ray.data.prepare.libraries import library

# Most text is ASCII without control characters. It needs no change, and this is faster than ftfy.
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
        self._notes.add(sample.source, "encoding mended")
        return dataclasses.replace(sample, content=content)

    def _normalized(self, text: str) -> str:
        if _PLAIN.fullmatch(text):
            return text
        return self._ftfy.fix_text(text, self._config)
