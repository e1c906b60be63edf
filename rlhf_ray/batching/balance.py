"""Balanced assignment of groups to ranks."""

from __future__ import annotations

from collections.abc import Sequence


def balance(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Split indices of `sizes` into parts of similar sums.

    Greedy: the largest first, each to the lightest part. Every index is in one part; a part may
    be empty. Within a part indices rise. The same sizes give the same parts.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = [0] * num_parts
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        lightest = min(range(num_parts), key=lambda part: (loads[part], part))
        parts[lightest].append(index)
        loads[lightest] += sizes[index]
    return [sorted(part) for part in parts]
