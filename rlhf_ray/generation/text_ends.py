"""How much of a response's text is there after each of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A character has at most 4 bytes, so at most as many tokens of a byte-level tokenizer.
_LONGEST_CHARACTER = 4


def text_ends(
    decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], text: str
) -> tuple[int, ...]:
    """Characters of `text` that the tokens up to each one give, without tokenising any text.

    A character that several tokens make up is there with the last of them. New tokens are decoded
    together with those before them, because a decoder may treat the first token of a text apart
    (and drop its space, for example). What they add counts if it is what comes next in the text;
    if it is not for more tokens than a character can have, all tokens so far are decoded.

    Args:
        decode: tokens to text, special tokens left out.
        token_ids [R]: as sampled.
        text: what they decode to, maybe cut off (before a stop string).

    Returns:
        [R] numbers that never fall, from 0 to len(text).
    """
    ends: list[int] = []
    # `known` is the text of token_ids[first:read], and text[:done] that of token_ids[:read].
    first, read, done, known, seen = 0, 0, 0, "", 0
    for now in range(1, len(token_ids) + 1):
        start, piece = done, decode(token_ids[first:now])[len(known) :]
        if not _continues(text, start, piece) and now - read > _LONGEST_CHARACTER:
            start, piece = 0, decode(token_ids[:now])
            # All that can be said where even this is no part of the text.
            seen = max(seen, _num_shared(piece, text))
        # Tokens without text of their own stay in front: they are no context for what follows.
        if piece and _continues(text, start, piece):
            first, read, done = read, now, min(start + len(piece), len(text))
            known = decode(token_ids[first:read])
        seen = max(seen, done)
        ends.append(seen)
    return tuple(ends)


def _continues(text: str, start: int, piece: str) -> bool:
    """Whether `piece` stands at `start`, or all that is left of the text is in it."""
    return piece.startswith(text[start : start + len(piece)])


def _num_shared(first: str, second: str) -> int:
    """Characters at the start that both have."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)
