"""Alignment of a response's tokens and its text: number of characters after each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

# A character has at most 4 bytes, so at most as many tokens of a byte-level tokenizer.
_LONGEST_CHARACTER = 4


def text_ends(
    decode: Callable[[Sequence[int]], str], token_ids: Sequence[int], text: str
) -> tuple[int, ...]:
    """Number of characters of `text` that the tokens up to each one give; nothing is tokenised.

    A character that is made of several tokens counts from the last of them on. New tokens are
    decoded together with those before them, because a decoder may treat the first token of a text
    differently (drop its space, for example). The characters that they add count if they come next
    in the text; if they do not for more tokens than a character can have, all tokens so far are
    decoded.

    Args:
        decode: tokens to text, special tokens left out.
        token_ids [R]: tokens as sampled.
        text: their text, possibly cut off before a stop string.

    Returns:
        [R] numbers from 0 to len(text), in non-decreasing order.
    """
    ends: list[int] = []
    # Decoding all tokens again after each one would be quadratic, so a short window is decoded:
    # `known` is the text of token_ids[first:read], and text[:done] that of token_ids[:read]. `seen`
    # is the largest number so far, because ends must never fall.
    first, read, done, known, seen = 0, 0, 0, "", 0
    for now in range(1, len(token_ids) + 1):
        start, piece = done, decode(token_ids[first:now])[len(known) :]
        # An incomplete character decodes to a replacement character, which does not continue the
        # text: wait for the tokens that complete it. If too many come, the window is misaligned.
        if not _continues(text, start, piece) and now - read > _LONGEST_CHARACTER:
            start, piece = 0, decode(token_ids[:now])
            # If even this does not continue the text, the common beginning is the best answer.
            seen = max(seen, _num_shared(piece, text))
        # Tokens that add no text (special tokens) stay in the window, which begins at a token with
        # text: only such a token is context for the decoder.
        if piece and _continues(text, start, piece):
            first, read, done = read, now, min(start + len(piece), len(text))
            known = decode(token_ids[first:read])
        seen = max(seen, done)
        ends.append(seen)
    return tuple(ends)


def _continues(text: str, start: int, piece: str) -> bool:
    """Whether `piece` is the text at `start`, or begins with all that is left of the text."""
    return piece.startswith(text[start : start + len(piece)])


def _num_shared(first: str, second: str) -> int:
    """Length of the common beginning of two texts."""
    shortest = min(len(first), len(second))
    return next((i for i in range(shortest) if first[i] != second[i]), shortest)
