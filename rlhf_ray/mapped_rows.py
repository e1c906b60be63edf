"""A sequence whose items are made of another's when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")


class MappedRows(Sequence[U], Generic[T, U]):
    """`change` of every row. It keeps nothing: each access makes the item again.

    Args:
        rows: such as examples on disk.
        change: the same item for the same row, every time.
    """

    def __init__(self, rows: Sequence[T], change: Callable[[T], U]) -> None:
        self._rows = rows
        self._change = change

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> U: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[U, ...]: ...
    def __getitem__(self, index: int | slice) -> U | tuple[U, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(*index.indices(len(self))))
        return self._change(self._rows[index])
