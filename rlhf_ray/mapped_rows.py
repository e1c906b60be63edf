"""Sequences whose items are made when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")


class RowsOnDemand(Sequence[U], ABC, Generic[U]):
    """A sequence that keeps no items: each access makes the item again."""

    @overload
    def __getitem__(self, index: int) -> U: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[U, ...]: ...
    def __getitem__(self, index: int | slice) -> U | tuple[U, ...]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return tuple(self._row(number) for number in numbers)
        return self._row(numbers)

    @abstractmethod
    def _row(self, number: int) -> U:
        """The item of this number, from 0 to the length; the same every time."""


class MappedRows(RowsOnDemand[U], Generic[T, U]):
    """`change` of every row.

    Args:
        rows: such as examples on disk.
        change: the same item for the same row, every time.
    """

    def __init__(self, rows: Sequence[T], change: Callable[[T], U]) -> None:
        self._rows = rows
        self._change = change

    def __len__(self) -> int:
        return len(self._rows)

    def _row(self, number: int) -> U:
        return self._change(self._rows[number])
