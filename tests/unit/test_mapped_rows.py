"""Items that are made of others when they are asked for."""

from __future__ import annotations

import pytest

from rlhf_ray.mapped_rows import MappedRows


def test_items_are_made_when_they_are_asked_for():
    made: list[int] = []

    def change(number: int) -> str:
        made.append(number)
        return str(number)

    rows = MappedRows([3, 1, 2], change)
    assert len(rows) == 3
    assert made == []
    assert rows[-1] == "2"
    assert made == [2]
    assert rows[:2] == ("3", "1")
    assert list(rows) == ["3", "1", "2"]
    assert made == [2, 3, 1, 3, 1, 2], "nothing is kept"
    with pytest.raises(IndexError):
        rows[3]


def test_nothing_of_nothing():
    assert list(MappedRows((), str)) == []
