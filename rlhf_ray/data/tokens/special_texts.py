"""Texts of special tokens inside rows: a tokenizer makes the special token of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.data import SourceConfig
from rlhf_ray.data.rows import BadCell, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens as text, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    return tuple(sorted(texts, key=len, reverse=True))


def broken_up(text: str, tokens: Iterable[str]) -> str:
    """The text with a space inside of every text of these tokens, which it then cannot become."""
    for token in tokens:
        if token in text:
            text = text.replace(token, f"{token[:1]} {token[1:]}")
    return text


class SpecialTextCheck:
    """Counts rows whose own text has that of a special token, or refuses them, as configured."""

    def __init__(self, source: SourceConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        texts = [re.escape(text) for text in special_texts(tokenizer) if text]
        self._pattern = re.compile("|".join(texts)) if texts else None
        self._source = source
        self._count = 0
        self._first = ""

    def check(self, row: Row, value: Any) -> None:
        """Look through the texts of a value, which may be a chat.

        Raises:
            BadCell: there is one, and the source's `on_special_text` is refuse.
        """
        found = self._found(value)
        if found is None:
            return
        if self._source.on_special_text == "refuse":
            raise BadCell(
                f"the text {found!r} is that of a special token, which it would become; "
                f"{self._source.key('on_special_text')}=keep accepts it"
            )
        self._count += 1
        self._first = self._first or f"{row.where}: {found!r}"

    def lines(self) -> tuple[str, ...]:
        """Lines for the screen."""
        if not self._count:
            return ()
        return (
            f"with the text of a special token, which it becomes: {self._count} rows (first: "
            f"{self._first}); {self._source.key('on_special_text')}=refuse makes them bad rows",
        )

    def _found(self, value: Any) -> str | None:
        if self._pattern is None:
            return None
        found = (self._pattern.search(text) for text in _texts(value))
        return next((match[0] for match in found if match), None)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        yield from _texts(list(value.values()))
