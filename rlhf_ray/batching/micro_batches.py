"""Assignment of samples to micro-batches, ranks and optimiser steps.

Plain functions of lengths and counts. The same counts give the same plan everywhere, so no
plan has to be sent.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.batching.layout_cost import MIN_SAVING, SampleShape
from rlhf_ray.batching.sequence_split import SequenceSplit


def plan_micro_batches(
    lengths: Sequence[int],
    num_ranks: int,
    max_tokens: int,
    *,
    layout: str = "padded",
    shapes: Sequence[SampleShape] = (),
    ranks_per_sample: int = 1,
) -> list[list[list[int]]]:
    """Spread samples over ranks and micro-batches of bounded size.

    The size of a micro-batch depends on `layout`:

    - "padded": one sample a row, rows x longest row. The samples of a micro-batch are of similar
      length, so that little is padding.
    - "packed": tokens without padding, a prompt once for neighbours that share it. Samples with
      the same prompt are neighbours.
    - "auto": as for "padded", so that no forward pass is over the budget whichever layout a rank
      then takes. Samples are sorted by length; or kept together by prompt, if that clearly saves
      tokens when every micro-batch takes the better layout.
    - "varlen": tokens without padding.

    In each case:

    - A micro-batch is at most `max_tokens`.
    - Every rank gets the same number of micro-batches, because each one is a collective
      operation under ZeRO; that number is the smallest possible for samples in their order.
      One is empty only when there are fewer samples than micro-batches.
    - The largest micro-batch is as small as that number allows, and the ranks' sizes
      differ by at most the difference between the largest and the smallest micro-batch.

    Args:
        lengths: tokens per sample.
        num_ranks: ranks that share the work; or groups of ranks, if a group computes every sample
            together.
        max_tokens: tokens that one forward pass may have on one rank.
        shapes: of the samples; for "packed" and "auto".
        ranks_per_sample: ranks of a group. Each holds a piece of every row, rounded up; only with
            "padded" and "varlen".

    Returns:
        per rank, per micro-batch, the indices of its samples; at least one micro-batch a rank.

    Raises:
        ValueError: a sample alone is over the budget.
    """
    assert num_ranks > 0, f"num_ranks is {num_ranks}"
    split = SequenceSplit(size=ranks_per_sample)
    _check_budget(lengths, max_tokens, split)
    lengths = [split.held(length) for length in lengths]
    # Neighbours of similar length leave little padding.
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    if layout == "padded":
        return _plan(by_length, _PaddedSize(lengths), max_tokens, num_ranks)
    if layout == "varlen":
        return _plan(by_length, _SumSize(lengths), max_tokens, num_ranks)
    assert ranks_per_sample == 1, f"layout={layout} with {ranks_per_sample} ranks per sample"
    assert layout in ("packed", "auto"), f"layout is {layout!r}"
    return _plan_with_prompts(lengths, shapes, by_length, max_tokens, num_ranks, layout=layout)


def _plan_with_prompts(
    lengths: Sequence[int],
    shapes: Sequence[SampleShape],
    by_length: Sequence[int],
    max_tokens: int,
    num_ranks: int,
    *,
    layout: str,
) -> list[list[list[int]]]:
    """The plan of "packed" or "auto", in which samples may share their prompts."""
    padded, packed = _PaddedSize(lengths), _PackedSize(lengths, shapes)
    # Samples of a family side by side: a prompt is shared within one micro-batch only.
    first = {shapes[index].family: place for place, index in reversed([*enumerate(by_length)])}
    by_prompt = sorted(by_length, key=lambda index: first[shapes[index].family])
    if layout == "packed":
        return _plan(by_prompt, packed, max_tokens, num_ranks)
    # Both are cut by padded size: a rank that takes padded rows must have the memory for them.
    plans = [_plan(order, padded, max_tokens, num_ranks) for order in (by_length, by_prompt)]
    usual, together = (_computed_tokens(plan, padded, packed, by_prompt) for plan in plans)
    return plans[1] if together < (1 - MIN_SAVING) * usual else plans[0]


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
    # Without a split a permutation would only reorder sums, and change them by rounding.
    if num_mini_batches == 1:
        return [order]
    random.Random(seed).shuffle(order)
    bounds = [part * num_samples // num_mini_batches for part in range(num_mini_batches + 1)]
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def _computed_tokens(
    plan: list[list[list[int]]], padded: _Size, packed: _Size, by_prompt: Sequence[int]
) -> int:
    """Tokens through the layers when every micro-batch takes the better layout."""
    place = {index: place for place, index in enumerate(by_prompt)}
    batches = [sorted(rows, key=place.__getitem__) for rank in plan for rows in rank]
    return sum(min(_total(padded, rows), _total(packed, rows)) for rows in batches)


def _check_budget(lengths: Sequence[int], max_tokens: int, split: SequenceSplit) -> None:
    if lengths and split.held(max(lengths)) > max_tokens:
        longest = max(range(len(lengths)), key=lambda index: lengths[index])
        raise ValueError(
            f"sample {longest} has {lengths[longest]} tokens{split.described}, but "
            f"max_tokens_per_micro_batch is {max_tokens}: raise it to at least "
            f"{split.held(lengths[longest])}, or shorten prompts or responses"
        )


class _Size(Protocol):
    """Size of a micro-batch; it grows with every sample, so greedy filling needs the fewest."""

    def add(self, state: tuple[int, int], index: int) -> tuple[int, int]:
        """The state with one more sample; (0, -1) is that of none."""
        ...

    def of(self, state: tuple[int, int]) -> int: ...


@dataclass(frozen=True, slots=True)
class _PaddedSize:
    """Rows x longest row. The state is their number and the longest."""

    lengths: Sequence[int]

    def add(self, state: tuple[int, int], index: int) -> tuple[int, int]:
        return state[0] + 1, max(state[1], self.lengths[index])

    def of(self, state: tuple[int, int]) -> int:
        return state[0] * state[1]


@dataclass(frozen=True, slots=True)
class _SumSize:
    """Tokens without padding. The state is their number."""

    lengths: Sequence[int]

    def add(self, state: tuple[int, int], index: int) -> tuple[int, int]:
        return state[0] + self.lengths[index], -1

    def of(self, state: tuple[int, int]) -> int:
        return state[0]


@dataclass(frozen=True, slots=True)
class _PackedSize:
    """Tokens, a prompt once for neighbours. The state is their number and the last family."""

    lengths: Sequence[int]
    shapes: Sequence[SampleShape]

    def add(self, state: tuple[int, int], index: int) -> tuple[int, int]:
        shape = self.shapes[index]
        known = shape.prompt if shape.family == state[1] else 0
        return state[0] + self.lengths[index] - known, shape.family

    def of(self, state: tuple[int, int]) -> int:
        return state[0]


_NONE = (0, -1)


def _total(size: _Size, rows: Sequence[int]) -> int:
    return size.of(functools.reduce(size.add, rows, _NONE)) if rows else 0


def _plan(
    order: Sequence[int], size: _Size, max_tokens: int, num_ranks: int
) -> list[list[list[int]]]:
    """Cut `order` into micro-batches, the same number for every rank."""
    fewest = len(_pack(order, size, max_tokens))
    # Rounded up to a multiple of the ranks. Under ZeRO every pass gathers weights from all ranks,
    # so a rank with one pass less would leave the others waiting for ever.
    num_slots = max(1, -(-fewest // num_ranks)) * num_ranks
    packed = _pack(order, size, _smallest_budget(order, size, max_tokens, num_slots))
    return _deal(_fill_slots(packed, size, num_slots), size, num_ranks)


def _pack(order: Sequence[int], size: _Size, budget: int) -> list[list[int]]:
    """Fill micro-batches one after the other: the fewest for this order."""
    packed: list[list[int]] = []
    state = _NONE
    for index in order:
        state = size.add(state, index)
        if packed and size.of(state) <= budget:
            packed[-1].append(index)
        else:
            state = size.add(_NONE, index)
            packed.append([index])
    return packed


def _smallest_budget(order: Sequence[int], size: _Size, max_tokens: int, num_slots: int) -> int:
    """Find the smallest budget that still needs at most `num_slots` micro-batches.

    Filled up to `max_tokens`, the first micro-batches would be full and the last one would have
    the remainder, however small. Its rank would idle, and peak memory would be needlessly high.
    """
    # A smaller budget never needs fewer micro-batches, so halving the interval finds the bound.
    # No budget can be below the largest single sample.
    low = max((_total(size, [index]) for index in order), default=0)
    high = max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_pack(order, size, middle)) <= num_slots:
            high = middle
        else:
            low = middle + 1
    return high


def _fill_slots(packed: list[list[int]], size: _Size, num_slots: int) -> list[list[int]]:
    """Halve the largest micro-batches until there is one per slot; then add empty ones."""
    filled = list(packed)
    # Even the smallest budget may need fewer micro-batches than there are slots. Halving the
    # largest ones gives spare slots work: ranks take turns in a pass anyway, empty or not.
    while len(filled) < num_slots:
        several = [slot for slot, rows in enumerate(filled) if len(rows) > 1]
        if not several:
            return filled + [[] for _ in range(num_slots - len(filled))]
        largest = max(several, key=lambda slot: _total(size, filled[slot]))
        rows = filled[largest]
        filled[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return filled


def _deal(micro_batches: list[list[int]], size: _Size, num_ranks: int) -> list[list[list[int]]]:
    """Deal largest first, in rounds of one per rank, the larger to the rank with less so far.

    In rounds, because ranks wait for each other at every micro-batch: micro-batches that run at
    the same time are of similar size.
    """
    sizes = [_total(size, rows) for rows in micro_batches]
    order = sorted(range(len(sizes)), key=lambda slot: -sizes[slot])
    ranks: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    loads = [0] * num_ranks
    for start in range(0, len(order), num_ranks):
        takers = sorted(range(num_ranks), key=lambda rank: loads[rank])
        for rank, slot in zip(takers, order[start : start + num_ranks], strict=True):
            ranks[rank].append(micro_batches[slot])
            loads[rank] += sizes[slot]
    return ranks
