"""Check of a regular expression from the configuration."""

from __future__ import annotations

import re


def compile_pattern(pattern: str, *, ignore_case: bool) -> re.Pattern[str]:
    """Compile the expression.

    Raises:
        ValueError: the pattern is empty or not a regular expression, or `ignore_case` is no bool.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"pattern is {pattern!r}; it must be a text that is not empty")
    if not isinstance(ignore_case, bool):
        raise ValueError(f"ignore_case is {ignore_case!r}; it must be true or false")
    try:
        return re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ValueError(
            f"pattern {pattern!r} is not a regular expression: {error}; quote it in YAML "
            "with single quotes, which leave backslashes alone"
        ) from error
