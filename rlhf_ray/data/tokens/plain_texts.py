"""Encoding of texts that no chat template renders: one beginning, and at most one end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.tokens.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "a"


class PlainEncoder:
    """Adds the tokens that the tokenizer puts around a text, where the text lacks them.

    A text may be rendered already, and then begins with the beginning-of-text token. A tokenizer
    that adds it too would write it twice, which the model has never seen.

    Attributes:
        num_begun, num_ended: encoded texts that had the tokens of their beginning or end already.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        around = _around(tokenizer)
        # A tokenizer that changes a text when it adds tokens is left to itself.
        self._is_opaque = around is None
        self._before, self._after = around or ([], [])
        self.num_begun = self.num_ended = 0

    def encode(self, texts: Sequence[str], *, with_end: bool = False) -> list[list[int] | BadCell]:
        """Token ids of each text, or why it cannot be tokenised.

        Args:
            with_end: add the tokens that the tokenizer puts after a text, too; without it, a text
                can be continued.
        """
        encoded = encode(texts, self._tokenizer, add_special_tokens=self._is_opaque)
        if self._is_opaque:
            return encoded
        after = self._after if with_end else []
        return [ids if isinstance(ids, BadCell) else self._around(ids, after) for ids in encoded]

    def begins(self, text: str) -> bool:
        """Whether the text has the tokens that the tokenizer would put before it."""
        token = self._tokenizer.bos_token
        return bool(self._before) and isinstance(token, str) and text.startswith(token)

    def lines(self) -> list[str]:
        """Words on the texts that had the tokens already; none if there are no such texts."""
        return already_lines(self._tokenizer, self.num_begun, self.num_ended)

    def _around(self, ids: list[int], after: list[int]) -> list[int]:
        before = self._before
        if before and ids[: len(before)] == before:
            self.num_begun += 1
            before = []
        if after and ids[-len(after) :] == after:
            self.num_ended += 1
            after = []
        return [*before, *ids, *after]


def already_lines(tokenizer: PreTrainedTokenizerBase, num_begun: int, num_ended: int) -> list[str]:
    """Words on texts that had the tokens of their beginning or end already."""
    lines = []
    if num_begun:
        lines.append(
            f"begin with {tokenizer.bos_token!r} already, which is not added again: {num_begun}"
        )
    if num_ended:
        lines.append(f"end with an end of text or turn already; none is added again: {num_ended}")
    return lines


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]] | None:
    """The tokens that the tokenizer puts before and after a text; None if it changes the text."""
    (inner,) = tokenizer([_PROBE], add_special_tokens=False)["input_ids"]
    (whole,) = tokenizer([_PROBE], add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(inner) + 1):
        stop = start + len(inner)
        if whole[start:stop] == inner:
            return list(whole[:start]), list(whole[stop:])
    return None
