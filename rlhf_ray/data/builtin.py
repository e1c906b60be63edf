"""Prompt sources without a file, for the built-in recipes.

A configuration names them by import path: `data.path=rlhf_ray.data.builtin:arithmetic`.
"""

from __future__ import annotations

from collections.abc import Iterator


def arithmetic() -> Iterator[dict[str, str]]:
    """The 100 sums of two digits, as `prompt` and `answer`."""
    for a in range(10):
        for b in range(10):
            yield {"prompt": f"What is {a}+{b}?", "answer": str(a + b)}


def small_sums() -> Iterator[dict[str, str]]:
    """The 64 sums of two numbers from 2 to 9, in words for a chat model."""
    for a in range(2, 10):
        for b in range(2, 10):
            yield {
                "prompt": f"What is {a} plus {b}? Reply with the number only.",
                "answer": str(a + b),
            }
