"""Groups over ranks."""

from __future__ import annotations

import random

import pytest

from rlhf_ray.batching.balance import balance


def test_by_hand():
    assert balance([5, 9, 4, 1], 2) == [[1, 3], [0, 2]]


def test_fewer_groups_than_ranks_leaves_ranks_empty():
    assert balance([3], 3) == [[0], [], []]


@pytest.mark.parametrize("seed", range(20))
def test_every_group_once_and_no_rank_is_ahead_by_more_than_the_largest(seed):
    numbers = random.Random(seed)
    sizes = [numbers.randint(1, 100) for _ in range(numbers.randint(1, 40))]
    parts = balance(sizes, numbers.randint(1, 5))
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    loads = [sum(sizes[index] for index in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes)
    assert all(part == sorted(part) for part in parts)
