"""Text that was decoded wrongly, and characters that no text has."""

from __future__ import annotations

import dataclasses
import re

from rlhf_ray.data.prepare.cleaning.steps import Notes
from rlhf_ray.data.prepare.conversion.contents import Sample
from rlhf_ray.data.prepare.libraries import library

# ASCII without control characters needs no mending: most text, and much faster than ftfy.
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")


class Mending:
    """Mojibake ("schÃ¶n"), control characters, line ends and broken surrogates, with ftfy.

    What a writer may have meant stays: curled quotes, ligatures, full-width letters and HTML.
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
        content = sample.content.mapped(self._mended)
        if content == sample.content:
            return sample
        self._notes.add(sample.source, "encoding mended")
        return dataclasses.replace(sample, content=content)

    def _mended(self, text: str) -> str:
        if _PLAIN.fullmatch(text):
            return text
        return self._ftfy.fix_text(text, self._config)
