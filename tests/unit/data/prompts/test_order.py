"""The order of rows of any source, and going on after a stop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.data.rows import DataError


def make_order(kind: str = "texts", **settings: Any) -> RowOrder:
    return RowOrder(
        kind, **{"num_rows": 10, "fingerprint": "f", "seed": 1, "shuffle": True, **settings}
    )


def rows(order: RowOrder, count: int) -> list[int]:
    return [order.next().row for _ in range(count)]


def test_places() -> None:
    order = make_order(num_rows=3, shuffle=False)
    places = [order.next() for _ in range(7)]
    assert [(place.index, place.epoch, place.row) for place in places] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 0, 2),
        (3, 1, 0),
        (4, 1, 1),
        (5, 1, 2),
        (6, 2, 0),
    ]
    assert order.epoch == 2


def test_every_epoch_has_every_row_once_in_its_own_order() -> None:
    taken = rows(make_order(), 30)
    epochs = [taken[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(10)]}) == 4


def test_two_sources_of_one_run_are_not_shuffled_alike() -> None:
    orders = [rows(make_order(kind), 10) for kind in ("prompts", "texts", "pairs")]
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_is_fixed_for_ever() -> None:
    """The order must fit checkpoints of earlier releases, so the expected one is in this file."""
    assert rows(make_order("texts"), 10) == [5, 6, 9, 8, 3, 7, 1, 2, 0, 4]
    assert rows(make_order("prompts"), 10) == [4, 9, 8, 7, 6, 3, 2, 0, 5, 1]


@pytest.mark.parametrize("taken", [0, 3, 10, 14])
def test_resume(taken: int) -> None:
    whole = rows(make_order(), taken + 25)
    first, second = make_order(), make_order()
    rows(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    rows(second, 7)
    second.load_state_dict(state)
    assert rows(second, 25) == whole[taken:]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_rows": 9}, "stream of texts is not that of this run: num_texts was 9 and is 10"),
        ({"fingerprint": "g"}, "fingerprint was 'g' and is 'f'"),
        ({"seed": 2}, "seed was 2 and is 1"),
        ({"shuffle": False}, "shuffle was False and is True"),
    ],
)
def test_state_of_another_order_is_refused(other: dict[str, Any], message: str) -> None:
    order = make_order()
    rows(order, 4)
    with pytest.raises(DataError, match=message):
        order.load_state_dict(make_order(**other).state_dict())
    assert order.next().index == 4
