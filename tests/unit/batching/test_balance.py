"""Groups over ranks."""

from __future__ import annotations

import random

import pytest

from rlhf_ray.batching.balance import Loads, balance


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


@pytest.mark.parametrize("seed", range(20))
def test_the_least_loaded_is_found_as_by_a_scan(seed):
    numbers = random.Random(seed)
    size = numbers.randint(1, 6)
    loads, expected = Loads(size), [0] * size
    for _ in range(300):
        worker = numbers.randrange(size)
        change = numbers.randint(-expected[worker], 4)
        loads.add(worker, change)
        expected[worker] += change
        assert list(loads) == expected
        other_than = numbers.choice([None, *range(size)])
        candidates = [i for i in range(size) if i != other_than or size == 1]
        assert loads.least(other_than) == min(candidates, key=lambda i: (expected[i], i))


def test_the_choice_can_be_restricted_and_opened_again():
    loads = Loads(3)
    loads.add(1, 5)
    loads.restrict((1,))
    assert (loads.least(), loads.least(other_than=1)) == (1, 1)
    loads.add(1, 3)
    loads.restrict((0, 1))
    assert (loads.least(), loads.least(other_than=0)) == (0, 1)
    loads.add(2, -0)
    loads.restrict((0, 1, 2))
    loads.add(0, 1)
    assert loads.least() == 2
    assert list(loads) == [1, 8, 0]
