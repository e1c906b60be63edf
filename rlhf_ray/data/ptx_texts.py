"""Pretraining texts (PPO-ptx): read from rows, tokenised and cut to length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import TextsConfig
from rlhf_ray.data.notes import unread_columns
from rlhf_ray.data.rejects import INVALID, Rejects, Skipped, good_rows, skipped_lines
from rlhf_ray.data.rows import BadCell, DataError, Row, check_columns, text_cell
from rlhf_ray.data.sources.read import read_rows, source_notes
from rlhf_ray.data.tokens.encoding import most_characters
from rlhf_ray.data.tokens.fidelity import TokenTextCheck
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.data.tokens.special_texts import SpecialTextCheck

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOO_SHORT = "text of one token"
_TOKENISED_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSet:
    """All texts of a run.

    Attributes:
        token_ids: of each text or piece of a text, in the order of the source; at least 2 each.
        num_rows: rows that the texts come from.
        num_cut: rows of more than `texts.max_tokens`.
        skipped: rows that are left out, by reason.
        already: words on texts that had the tokens of their beginning or end already.
        fingerprint: hash of all tokens, in order.
        notes: further lines for the screen.
    """

    token_ids: tuple[tuple[int, ...], ...]
    num_rows: int
    num_cut: int
    skipped: tuple[Skipped, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    already: tuple[str, ...] = ()

    def describe(self) -> str:
        """Lines for the screen: number and lengths of texts, and rows left out."""
        lengths = [len(tokens) for tokens in self.token_ids]
        lines = [
            f"{len(lengths)} texts of {min(lengths)} to {max(lengths)} tokens "
            f"({sum(lengths) / len(lengths):.0f} on average) from {self.num_rows} rows, "
            f"{self.num_cut} of them longer than texts.max_tokens"
        ]
        return "\n".join([*lines, *self.already, *self.notes, *skipped_lines(self.skipped)])


def load_texts(texts: TextsConfig, tokenizer: PreTrainedTokenizerBase) -> TextSet:
    """Read and tokenise the whole source.

    A text gets the special tokens that the tokenizer itself adds to plain text, unless it has them
    already, and no chat template. A text of more than `max_tokens` is split into pieces of that
    many tokens (the last one may be shorter), or cut after its first piece, as configured. A last
    piece of one token is left out, because no token precedes it from which it could be predicted.

    Raises:
        DataError: the source cannot be read, no row has the column, no text is left, or a row is
            unusable and `texts.on_bad_row` is error.
    """
    rejects = Rejects(texts)
    rows = list(good_rows(read_rows(texts), rejects))
    if not rows:
        raise DataError(f"{texts.key('path')}: {texts.path} has no rows{rejects.summary()}")
    check_columns(texts, {"text_column": texts.text_column}, rows)
    pieces: list[tuple[int, ...]] = []
    num_rows = num_cut = 0
    specials = SpecialTextCheck(texts, tokenizer)
    filled = list(_filled(rows, texts, rejects, specials))
    if texts.on_long_text == "cut":
        # What is cut off need not be tokenised.
        end = 2 * most_characters(tokenizer, texts.max_tokens)
        filled = [(row, text[:end]) for row, text in filled]
    plain = PlainEncoder(tokenizer)
    fidelity = TokenTextCheck(tokenizer)
    for row, text, token_ids in _tokenised(filled, plain):
        if isinstance(token_ids, BadCell):
            rejects.bad_row(INVALID, row.where, str(token_ids))
            continue
        if len(token_ids) < 2:
            rejects.count(TOO_SHORT, f"{row.where}: nothing in it can be predicted")
            continue
        fidelity.check_text(row.where, text, token_ids)
        num_rows += 1
        num_cut += len(token_ids) > texts.max_tokens
        pieces += _pieces(token_ids, texts)
    if not pieces:
        raise DataError(f"{texts.key('path')}: no text of {texts.path} is left{rejects.summary()}")
    unread = unread_columns(
        rows, (texts.text_column,), what="columns of the texts that are not read"
    )
    return TextSet(
        token_ids=tuple(pieces),
        num_rows=num_rows,
        num_cut=num_cut,
        skipped=rejects.skipped(),
        fingerprint=_fingerprint(pieces),
        notes=(*source_notes(texts), *specials.lines(), *fidelity.lines(), *unread),
        already=tuple(plain.lines()),
    )


def _filled(
    rows: Iterable[Row], texts: TextsConfig, rejects: Rejects, specials: SpecialTextCheck
) -> Iterator[tuple[Row, str]]:
    """Yield the rows that have a text, with the text."""
    for row in rows:
        try:
            text = text_cell(row, texts.text_column)
            if not text.strip():
                raise BadCell(f"column {texts.text_column!r} is empty; it must be text")
            specials.check(row, text)
        except BadCell as error:
            rejects.bad_row(INVALID, row.where, str(error))
        else:
            yield row, text


def _tokenised(
    items: Sequence[tuple[Row, str]], plain: PlainEncoder
) -> Iterator[tuple[Row, str, list[int] | BadCell]]:
    """Tokenise in chunks: tokenizers are fast on many texts at once."""
    for start in range(0, len(items), _TOKENISED_AT_ONCE):
        chunk = items[start : start + _TOKENISED_AT_ONCE]
        encoded = plain.encode([text for _, text in chunk], with_end=True)
        for (row, text), ids in zip(chunk, encoded, strict=True):
            yield row, text, ids


def _pieces(token_ids: Sequence[int], texts: TextsConfig) -> Iterator[tuple[int, ...]]:
    longest = texts.max_tokens
    end = len(token_ids) if texts.on_long_text == "split" else longest
    for start in range(0, min(end, len(token_ids)), longest):
        piece = tuple(token_ids[start : start + longest])
        if len(piece) > 1:
            yield piece


def _fingerprint(pieces: Sequence[tuple[int, ...]]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(json.dumps(piece).encode())
    return digest.hexdigest()[:16]
