"""Words of a text without case and punctuation, for comparisons."""

from __future__ import annotations

import re

# Scripts without spaces between words: every character is taken as one.
_UNSPACED = "぀-ヿ㐀-鿿가-힯"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """The words of a text in their order."""
    return _WORD.findall(text.casefold())
