"""Which samples share a forward pass, on which rank, in which optimiser step.

Plain functions of lengths and counts: every role plans alike, without asking another.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence


def plan_micro_batches(
    lengths: Sequence[int], num_ranks: int, max_tokens: int
) -> list[list[list[int]]]:
    """Spread samples over ranks and micro-batches of bounded padded size.

    - A micro-batch (rows x longest row) is at most `max_tokens`; its samples are of similar
      length, so that little is padding.
    - Every rank gets the same number of micro-batches, because each one is a collective
      operation under ZeRO; that number is the smallest possible for samples sorted by length.
      One is empty only when there are fewer samples than micro-batches.
    - The largest micro-batch is as small as that number allows, and the ranks' padded tokens
      differ by at most the difference between the largest and the smallest micro-batch.

    The result depends on the arguments alone.

    Args:
        lengths: tokens per sample.
        num_ranks: ranks that share the work.
        max_tokens: padded tokens that one forward pass may have.

    Returns:
        per rank, per micro-batch, the indices of its samples; at least one micro-batch a rank.

    Raises:
        ValueError: a sample alone is over the budget.
    """
    assert num_ranks > 0, f"num_ranks is {num_ranks}"
    if lengths and max(lengths) > max_tokens:
        longest = max(range(len(lengths)), key=lambda index: lengths[index])
        raise ValueError(
            f"sample {longest} has {lengths[longest]} tokens, but max_tokens_per_micro_batch is "
            f"{max_tokens}: raise it to at least {lengths[longest]}, or shorten prompts or "
            f"responses"
        )
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    fewest = len(_pack(order, lengths, max_tokens))
    num_slots = max(1, -(-fewest // num_ranks)) * num_ranks
    packed = _pack(order, lengths, _smallest_budget(order, lengths, max_tokens, num_slots))
    return _deal(_fill_slots(packed, lengths, num_slots), lengths, num_ranks)


def split_mini_batches(num_samples: int, num_mini_batches: int, seed: int) -> list[list[int]]:
    """Cut a seeded permutation of the samples into parts whose sizes differ by at most 1.

    One part alone keeps the samples in order.

    Raises:
        ValueError: there are fewer samples than parts.
    """
    if num_samples < num_mini_batches:
        raise ValueError(
            f"{num_samples} samples cannot be split into num_mini_batches={num_mini_batches} "
            f"optimiser steps: lower num_mini_batches, or raise prompts_per_step or "
            f"samples_per_prompt"
        )
    order = list(range(num_samples))
    if num_mini_batches == 1:
        return [order]
    random.Random(seed).shuffle(order)
    bounds = [part * num_samples // num_mini_batches for part in range(num_mini_batches + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def _padded(rows: Sequence[int], lengths: Sequence[int]) -> int:
    return len(rows) * max((lengths[row] for row in rows), default=0)


def _pack(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Fill micro-batches one after the other; `order` is longest first."""
    packed: list[list[int]] = []
    for index in order:
        if packed and (len(packed[-1]) + 1) * lengths[packed[-1][0]] <= budget:
            packed[-1].append(index)
        else:
            packed.append([index])
    return packed


def _smallest_budget(
    order: Sequence[int], lengths: Sequence[int], max_tokens: int, num_slots: int
) -> int:
    """The smallest budget that still needs at most `num_slots` micro-batches.

    Packing to `max_tokens` would leave the remainder, however small, to the last one.
    """
    low, high = max(lengths, default=0), max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_pack(order, lengths, middle)) <= num_slots:
            high = middle
        else:
            low = middle + 1
    return high


def _fill_slots(packed: list[list[int]], lengths: Sequence[int], num_slots: int) -> list[list[int]]:
    """Halve the largest micro-batches until there is one per slot; then add empty ones."""
    filled = list(packed)
    while len(filled) < num_slots:
        several = [slot for slot, rows in enumerate(filled) if len(rows) > 1]
        if not several:
            return filled + [[] for _ in range(num_slots - len(filled))]
        largest = max(several, key=lambda slot: _padded(filled[slot], lengths))
        rows = filled[largest]
        filled[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return filled


def _deal(
    micro_batches: list[list[int]], lengths: Sequence[int], num_ranks: int
) -> list[list[list[int]]]:
    """Largest first, in rounds of one per rank, the larger to the rank with less so far.

    In rounds, because ranks wait for each other at every micro-batch: those that run at the
    same time are of similar size.
    """
    sizes = [_padded(rows, lengths) for rows in micro_batches]
    order = sorted(range(len(sizes)), key=lambda slot: -sizes[slot])
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for start in range(0, len(order), num_ranks):
        takers = sorted(range(num_ranks), key=lambda rank: loads[rank])
        for rank, slot in zip(takers, order[start : start + num_ranks], strict=True):
            ranks[rank].append(micro_batches[slot])
            loads[rank] += sizes[slot]
    return ranks
