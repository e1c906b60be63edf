"""The end of a message about an unknown name: the names that there are."""

from __future__ import annotations

from collections.abc import Iterable


def there_are(hint: str, names: str | Iterable[str], *, verb: str = "are") -> str:
    """The hint and the list, to follow a semicolon: the list begins a sentence only after a hint.

    Args:
        hint: a question or sentence that ends with a space; empty without one.
        names: in order, or already joined.
        verb: is or are.
    """
    joined = names if isinstance(names, str) else ", ".join(names)
    return f"{hint}{'There' if hint else 'there'} {verb}: {joined}"
