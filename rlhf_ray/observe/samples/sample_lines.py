"""Answers and examples as lines for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

# Of each text; the files have all of it.
_PROMPT_CHARACTERS = 300
_ANSWER_CHARACTERS = 600
_EXAMPLE_CHARACTERS = 1200


def answer_lines(*, prompt: str, answer: str, reward: float, finish: str, tokens: int) -> str:
    """One answer with its reward; of a long text the middle is left out."""
    lines = [
        f"  reward {reward:.4g}, {tokens} tokens, {finish}",
        *_indented("prompt", middle_out(prompt, _PROMPT_CHARACTERS)),
        *_indented("answer", middle_out(answer, _ANSWER_CHARACTERS)),
    ]
    return "\n".join(lines)


def masked_example(
    token_ids: Sequence[int], mask: Sequence[bool], decode: Callable[[Sequence[int]], str]
) -> str:
    """An example with marks around the tokens that are learnt: `read «learnt»`.

    Args:
        mask: which tokens are learnt.
        decode: gives the text of tokens.
    """
    num_learnt = sum(mask)
    head = f"  {len(token_ids)} tokens, of which the {num_learnt} within «» are learnt"
    return "\n".join([head, *_indented("text", "".join(_marked(token_ids, mask, decode)))])


def middle_out(text: str, limit: int) -> str:
    """A text of at most about `limit` characters; says how many of its middle are left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} […{len(text) - 2 * half:,} characters…] {text[-half:]}"


def _marked(
    token_ids: Sequence[int], mask: Sequence[bool], decode: Callable[[Sequence[int]], str]
) -> Iterator[str]:
    place = 0
    runs = [(learnt, len(list(run))) for learnt, run in groupby(mask)]
    limit = max(_EXAMPLE_CHARACTERS // max(len(runs), 1), 60)
    for learnt, length in runs:
        text = middle_out(decode(token_ids[place : place + length]), limit)
        place += length
        yield f"«{text}»" if learnt else text


def _indented(name: str, text: str) -> list[str]:
    # Control characters of a text would move the cursor of the terminal.
    plain = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
    return [f"  {name if not i else '':<6} | {line}" for i, line in enumerate(plain.split("\n"))]
