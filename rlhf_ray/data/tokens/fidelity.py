"""Check that tokens say their text.

A vocabulary without bytes drops characters that it does not know, or replaces them by its unknown
token; a normalizer lowercases; an added token eats the white space next to it. Tokenizers say
nothing about it. Here tokens are decoded, which costs a third of encoding, and compared with the
text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from rlhf_ray.data.rendering.chat import Part, common_length
from rlhf_ray.data.tokens.turn_ends import added_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens before a learnt part that are decoded with it: a decoder may strip the first space.
_TOKENS_BEFORE = 4
_LEARNT, _CONTEXT = "what is learnt", "the context of what is learnt"
_SHOWN_BEFORE, _SHOWN_CHARACTERS = 8, 40


@dataclass(frozen=True, kw_only=True, slots=True)
class _Difference:
    """A text and its tokens' text, which differ.

    Attributes:
        note: kind of difference, for the screen.
    """

    note: str
    text: str
    decoded: str


class TokenTextCheck:
    """Counts rows whose tokens say something else than their text.

    Unicode's composed and decomposed forms are the same text here. So is a text with a space more
    or less at its beginning or behind an added token, which some tokenizers put there and take away
    again. White space that an added token eats is a difference only where it is learnt: in the
    context it is mostly the template's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._added = {number: text for text, number in added_tokens(tokenizer).items() if text}
        added = tokenizer.added_tokens_decoder.values()
        self._eats_left = {token.content for token in added if token.lstrip}
        self._eats_right = {token.content for token in added if token.rstrip}
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def check_prompt(self, where: str, text: str, ids: Sequence[int]) -> None:
        """Compare a prompt with its tokens; the tokenizer may have added a beginning."""
        self._add(where, self._compared(text, self._decode(ids), ids, of="a prompt"))

    def check_text(self, where: str, text: str, ids: Sequence[int]) -> None:
        """Compare a text, all of which is learnt, with its tokens and those added around it."""
        self._add(where, self._compared(text, self._decode(ids), ids, of=_LEARNT))

    def check_example(
        self,
        where: str,
        texts: Iterable[tuple[str, Sequence[Part], Sequence[int], Sequence[bool]]],
    ) -> None:
        """Compare the texts of a row with their tokens.

        Args:
            texts: text, [start, stop) of each learnt part, token ids, and their loss mask.
        """
        self._add(where, (found for text in texts for found in self._of_example(*text)))

    def lines(self) -> tuple[str, ...]:
        """Lines for the screen."""
        return tuple(
            f"{note}: {count} rows (first: {self._first[note]})"
            for note, count in self._counts.items()
        )

    def _add(self, where: str, found: Iterable[_Difference]) -> None:
        for note, different in {item.note: item for item in found}.items():
            self._counts[note] = self._counts.get(note, 0) + 1
            self._first.setdefault(note, f"{where}: {_excerpts(different)}")

    def _of_example(
        self, text: str, answers: Sequence[Part], ids: Sequence[int], mask: Sequence[bool]
    ) -> Iterator[_Difference]:
        if self._decode(ids) == text:
            return
        edges = [0, *(edge for answer in answers for edge in answer), len(text)]
        pieces = [text[start:stop] for start, stop in pairwise(edges)]
        parts = [[*self._parts(ids, mask, learnt=learnt)] for learnt in (False, True)]
        # White space at the edges of an answer is next to a token of the template.
        context = "".join(piece.strip() for piece in pieces[::2])
        decoded = "".join(part.strip() for part in parts[0])
        yield from self._compared(context, decoded, ids, of=_CONTEXT)
        yield from _differences("".join(pieces[1::2]), "".join(parts[1]), _LEARNT)

    def _compared(
        self, text: str, decoded: str, ids: Sequence[int], *, of: str
    ) -> Iterator[_Difference]:
        if decoded == text:
            return
        decoded = self._without_ends(decoded, text)
        present = sorted({self._added[i] for i in {*ids} & self._added.keys()}, key=len)
        pattern = re.compile("|".join(map(re.escape, reversed(present)))) if present else None
        yield from _differences(self._loosened(text, pattern), self._loosened(decoded, pattern), of)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _parts(self, ids: Sequence[int], mask: Sequence[bool], *, learnt: bool) -> Iterator[str]:
        """The texts of the tokens that are learnt, or of the others, run by run."""
        stop = 0
        for is_learnt, run in groupby(mask):
            start, stop = stop, stop + len(list(run))
            if bool(is_learnt) == learnt:
                begin = max(0, start - _TOKENS_BEFORE)
                before, own = self._decode(ids[begin:start]), self._decode(ids[begin:stop])
                is_apart = own.startswith(before)
                yield own[len(before) :] if is_apart else self._decode(ids[start:stop])

    def _without_ends(self, decoded: str, text: str) -> str:
        """Remove the special tokens around the tokens' text that the text itself lacks."""
        tokenizer = self._tokenizer
        for token in (tokenizer.bos_token, tokenizer.cls_token):
            if isinstance(token, str) and not text.startswith(token):
                decoded = decoded.removeprefix(token)
        for token in (tokenizer.eos_token, tokenizer.sep_token):
            if isinstance(token, str) and not text.endswith(token):
                decoded = decoded.removesuffix(token)
        return decoded

    def _loosened(self, text: str, pattern: re.Pattern[str] | None) -> str:
        """The text without the white space next to added tokens that may come and go."""
        pieces: list[str] = []
        position, eats = 0, False
        for match in (*(pattern.finditer(text) if pattern else ()), None):
            gap = text[position : match.start() if match else None]
            gap = gap.lstrip() if eats else gap.removeprefix(" ")
            if match is None:
                pieces.append(gap)
                break
            token = match[0]
            pieces += [gap.rstrip() if token in self._eats_left else gap, token]
            position, eats = match.end(), token in self._eats_right
        return "".join(pieces)


def _differences(text: str, decoded: str, of: str) -> Iterator[_Difference]:
    if decoded == text or unicodedata.normalize("NFC", decoded) == unicodedata.normalize(
        "NFC", text
    ):
        return
    is_space = "".join(decoded.split()) == "".join(text.split())
    # A space in front of an answer that is decoded as a part of the token before it.
    if is_space and decoded.removeprefix(" ") == text:
        return
    what = "white space" if is_space else "characters"
    note = f"the tokenizer changes or drops {what} of {of}"
    yield _Difference(note=note, text=text, decoded=decoded)


def _excerpts(different: _Difference) -> str:
    """Both texts where they begin to differ."""
    begin = max(0, common_length(different.text, different.decoded) - _SHOWN_BEFORE)
    shown = slice(begin, begin + _SHOWN_CHARACTERS)
    return f"{different.text[shown]!r} becomes {different.decoded[shown]!r}"
