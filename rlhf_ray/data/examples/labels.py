"""Exact loss masks: from marked answers in a text to masked tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from rlhf_ray.data.examples.spans import MarkedText
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.tokens.encoding import encode
from rlhf_ray.data.tokens.plain_texts import PlainEncoder
from rlhf_ray.records.supervised import LabelledTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def label_texts(
    texts: Sequence[MarkedText], tokenizer: PreTrainedTokenizerBase
) -> list[LabelledTokens | BadCell]:
    """Tokenise marked texts and mask their answers; many texts at once, which is faster.

    A mask is exact if no token crosses the beginning or end of an answer. This holds if the tokens
    of the whole text equal those of its parts one after the other, or begin with the tokens of
    every prefix that ends at such a border. Otherwise the parts are tokenised separately, as in
    generation, where the prompt is tokenised before its answer exists. The separate tokens must
    decode to the same text.

    Returns:
        the tokens of each text, or what is wrong with it.
    """
    wholes = _encode(
        [text.text for text in texts], [text.adds_specials for text in texts], tokenizer
    )
    pieces = [_pieces(text) for text in texts]
    flat = _encode(
        [piece for row in pieces for piece in row],
        [
            text.adds_specials and number == 0
            for text, row in zip(texts, pieces, strict=True)
            for number in range(len(row))
        ],
        tokenizer,
    )
    labelled: list[LabelledTokens | BadCell] = []
    position = 0
    for text, whole, row in zip(texts, wholes, pieces, strict=True):
        parts = flat[position : position + len(row)]
        position += len(row)
        try:
            ids, *of_parts = _readable([whole, *parts])
            labelled.append(_masked(_aligned(text, ids, of_parts, tokenizer)))
        except BadCell as error:
            labelled.append(error)
    return labelled


def _readable(encoded: Sequence[list[int] | BadCell]) -> list[list[int]]:
    """Token ids of all texts.

    Raises:
        BadCell: a text cannot be tokenised.
    """
    readable: list[list[int]] = []
    for ids in encoded:
        if isinstance(ids, BadCell):
            raise ids
        readable.append(ids)
    return readable


def _pieces(text: MarkedText) -> list[str]:
    """Split into context, answer, context, answer, ..., context; a context may be empty."""
    edges = [0, *(edge for answer in text.answers for edge in answer), len(text.text)]
    return [text.text[a:b] for a, b in pairwise(edges)]


def _encode(
    texts: Sequence[str], adds_specials: Sequence[bool], tokenizer: PreTrainedTokenizerBase
) -> list[list[int] | BadCell]:
    encoded: list[list[int] | BadCell] = [[] for _ in texts]
    for flag in (False, True):
        numbers = [number for number, adds in enumerate(adds_specials) if adds == flag]
        chosen = [texts[n] for n in numbers]
        if flag:
            ids = PlainEncoder(tokenizer).encode(chosen)
        else:
            ids = encode(chosen, tokenizer, add_special_tokens=False)
        for number, row in zip(numbers, ids, strict=True):
            encoded[number] = row
    return encoded


def _aligned(
    text: MarkedText,
    whole: list[int],
    parts: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """Align tokens with the parts context, answer, context, ...

    Raises:
        BadCell: no tokenisation has its borders at the borders of the answers.
    """
    joined = [token for part in parts for token in part]
    if joined == whole:
        return parts
    edges = [edge for answer in text.answers for edge in answer]
    flags = [text.adds_specials] * len(edges)
    beginnings = _readable(_encode([text.text[:edge] for edge in edges], flags, tokenizer))
    cuts = [0, *(len(beginning) for beginning in beginnings), len(whole)]
    if cuts == sorted(cuts) and all(whole[: len(ids)] == ids for ids in beginnings):
        return [whole[a:b] for a, b in pairwise(cuts)]
    if tokenizer.decode(joined) != tokenizer.decode(whole):
        raise BadCell(
            "the tokenizer joins the beginning or end of an answer with the text next to it, and "
            "gives another text where they are apart"
        )
    return parts


def _masked(parts: list[list[int]]) -> LabelledTokens:
    token_ids = torch.tensor([token for part in parts for token in part], dtype=torch.int64)
    # Every second part is an answer.
    flags = [number % 2 == 1 for number, part in enumerate(parts) for _ in part]
    loss_mask = torch.tensor(flags, dtype=torch.bool)
    loss_mask[:1] = False
    if not bool(loss_mask.any()):
        raise BadCell("the answer has no token")
    return LabelledTokens(token_ids=token_ids, loss_mask=loss_mask)
