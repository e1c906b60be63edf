"""The choice of the same prompts in every step, without a list of them.

A rollout file records the tokens of few samples, the learner scores few again after the update, and
a report shows few. All take the prompts with the smallest hashes, so that a prompt that comes again
is taken again.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

# Prompts of a step whose tokens are recorded; all of a large batch would triple its file.
DETAILED_PROMPTS = 8


def prompt_rank(text: str) -> int:
    """Place of a prompt among all prompts; the same in every process."""
    return zlib.crc32(text.encode(errors="backslashreplace"))


def detailed_places(ranks: Sequence[int]) -> list[int]:
    """Places of the prompts whose tokens are recorded, by the ranks of all prompts of a step."""
    return sorted(range(len(ranks)), key=lambda place: ranks[place])[:DETAILED_PROMPTS]


def best_and_worst(rewards: Sequence[float]) -> tuple[int, ...]:
    """Positions of the samples with the largest and with the smallest reward, the first of each."""
    if not rewards:
        return ()
    positions = range(len(rewards))
    best = max(positions, key=lambda i: rewards[i])
    worst = min(positions, key=lambda i: rewards[i])
    return (best,) if rewards[best] == rewards[worst] else (best, worst)
