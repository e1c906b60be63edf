"""Even loads: groups over ranks, requests over workers."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence


class Loads:
    """Loads of workers. Finding the least loaded takes logarithmic time, not one scan per request.

    Args:
        num_workers: all start with a load of 0.
    """

    def __init__(self, num_workers: int) -> None:
        self._loads = [0] * num_workers
        self._allowed: Sequence[int] = range(num_workers)
        self._open = frozenset(self._allowed)
        # Also has earlier loads of workers; `_first` removes them when they come to the top.
        self._heap = [(0, worker) for worker in range(num_workers)]

    def __iter__(self) -> Iterator[int]:
        return iter(self._loads)

    def restrict(self, workers: Sequence[int]) -> None:
        """From now on choose among these workers only; there must be one."""
        if workers != self._allowed:
            self._allowed, self._open = workers, frozenset(workers)
            self._fill()

    def add(self, worker: int, load: int) -> None:
        """Change the load of a worker; `load` is negative when work is done."""
        self._loads[worker] += load
        heapq.heappush(self._heap, (self._loads[worker], worker))
        if len(self._heap) > 8 * len(self._loads) + 64:
            self._fill()

    def _fill(self) -> None:
        self._heap = [(self._loads[worker], worker) for worker in self._open]
        heapq.heapify(self._heap)

    def least(self, other_than: int | None = None) -> int:
        """The first of the least loaded; not `other_than`, if there are several workers."""
        first = self._first()
        if first[1] != other_than or len(self._open) == 1:
            return first[1]
        while self._heap and self._heap[0][1] == other_than:
            heapq.heappop(self._heap)
        second = self._first()
        heapq.heappush(self._heap, first)
        return second[1]

    def _first(self) -> tuple[int, int]:
        while self._is_old(*self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0]

    def _is_old(self, load: int, worker: int) -> bool:
        return load != self._loads[worker] or worker not in self._open


def balance(sizes: Sequence[int], num_parts: int) -> list[list[int]]:
    """Split indices of `sizes` into parts of similar sums.

    Greedy: the largest first, each to the lightest part. Every index is in one part; a part may
    be empty. Within a part indices rise. The same sizes give the same parts.
    """
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    loads = Loads(num_parts)
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        lightest = loads.least()
        parts[lightest].append(index)
        loads.add(lightest, sizes[index])
    return [sorted(part) for part in parts]
