"""Operands in mathematical text: what a root, a power or a LaTeX fraction is applied to.

Every function reads a text once, from left to right. An operand whose bracket is not closed takes
the rest of the text, so that no number in it passes for a whole one. Nothing here may import torch.
"""

from __future__ import annotations

import re

_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"(?:\w|[.,](?=[0-9]))+")
_LEAD = re.compile(r"\s?[-\u2212+]?")
_BRACKETS = {"{": re.compile(r"[{}]"), "(": re.compile(r"[()]"), "[": re.compile(r"[\[\]]")}
_INDEX = re.compile(r"\s?[_^]")
# Longer operands of fractions are no numbers.
_MAX_OPERAND_CHARACTERS = 40


def operand_end(text: str, start: int) -> int:
    """End of the operand at `start`: brackets, a command with its arguments, or a word.

    An index, a degree ("[3]" of a root) and a power before it belong to it.
    """
    end = _bracket_end(text, start) if text[start : start + 1] == "[" else start
    while index := _INDEX.match(text, end):
        end = _term_end(text, index.end())
    end = _term_end(text, end)
    while text[end : end + 1] in ("{", "^", "_"):
        end = _bracket_end(text, end) if text[end] == "{" else _term_end(text, end + 1)
    return end


def read_operand(text: str, start: int) -> tuple[str | None, int]:
    """The content of an argument of a LaTeX fraction, and its end.

    Without braces an argument is one character, or one command. The content is None if it is no
    single character and not in braces.
    """
    while text[start : start + 1] == " ":
        start += 1
    if text[start : start + 1] == "{":
        end = _bracket_end(text, start)
        content = text[start + 1 : end - 1]
        return (content if len(content) <= _MAX_OPERAND_CHARACTERS else None), end
    if text[start : start + 1] == "\\":
        return None, _term_end(text, start)
    return text[start : start + 1], min(start + 1, len(text))


def _term_end(text: str, start: int) -> int:
    lead = _LEAD.match(text, start)
    end = lead.end() if lead else start
    if text[end : end + 1] in _BRACKETS:
        return _bracket_end(text, end)
    if command := _COMMAND.match(text, end):
        end = command.end()
        while text[end : end + 1] in ("{", "["):
            end = _bracket_end(text, end)
        return end
    word = _WORD.match(text, end)
    return word.end() if word else start


def _bracket_end(text: str, start: int) -> int:
    """The place behind the bracket that closes the one at `start`; the end of an open text."""
    opening, depth = text[start], 0
    for bracket in _BRACKETS[opening].finditer(text, start):
        depth += 1 if bracket[0] == opening else -1
        if not depth:
            return bracket.end()
    return len(text)
