"""The planner of micro-batches and the split into optimiser steps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.batching.layout_cost import SampleShape
from rlhf_ray.batching.micro_batches import plan_micro_batches, split_mini_batches


def padded(rows: list[int], lengths: list[int]) -> int:
    return len(rows) * max((lengths[row] for row in rows), default=0)


def fewest_sorted_micro_batches(lengths: list[int], budget: int) -> int:
    """Ground truth: the best of ALL ways to cut the sorted samples into neighbours."""
    ordered = sorted(lengths, reverse=True)
    best = [0] + [10**9] * len(ordered)
    for end in range(1, len(ordered) + 1):
        for start in range(end):
            if (end - start) * ordered[start] <= budget:
                best[end] = min(best[end], best[start] + 1)
    return best[-1]


def smallest_largest(lengths: list[int], parts: int) -> int:
    """Ground truth: the least possible largest padded size with at most `parts` cuts."""
    ordered = sorted(lengths, reverse=True)
    best = {(0, 0): 0}
    for end in range(1, len(ordered) + 1):
        for used in range(1, parts + 1):
            choices = [
                max(best[start, used - 1], (end - start) * ordered[start])
                for start in range(end)
                if (start, used - 1) in best
            ]
            if choices:
                best[end, used] = min(choices)
    return min(size for (end, _), size in best.items() if end == len(ordered))


class TestPlanMicroBatches:
    def test_by_hand_one_rank(self):
        # 4 + 4 = 8 fits, 3 rows of 4 do not; then three rows of 2.
        assert plan_micro_batches([2, 4, 2, 4, 2], 1, 8) == [[[1, 3], [0, 2, 4]]]

    def test_by_hand_two_ranks(self):
        # The remainder is not left to one rank: 5 and 5 rather than 8 and 2.
        plan = plan_micro_batches([100] * 10, 2, 800)
        assert plan == [[[0, 1, 2, 3, 4]], [[5, 6, 7, 8, 9]]]

    def test_a_large_one_is_split_rather_than_leave_a_rank_idle(self):
        assert plan_micro_batches([3, 3], 2, 100) == [[[0]], [[1]]]

    def test_empty_only_when_samples_run_out(self):
        assert plan_micro_batches([3, 5], 3, 100) == [[[1]], [[0]], [[]]]
        assert plan_micro_batches([], 2, 10) == [[[]], [[]]]

    def test_larger_micro_batches_alternate_between_ranks(self):
        # Sizes 9, 8, 7, 6 with one sample each: 9 + 6 and 8 + 7.
        assert plan_micro_batches([9, 8, 7, 6], 2, 9) == [[[0], [3]], [[1], [2]]]

    def test_a_sample_over_the_budget_is_refused_with_the_way_out(self):
        with pytest.raises(
            ValueError, match=r"sample 1 has 11 tokens.*is 10: raise it to at least"
        ):
            plan_micro_batches([3, 11], 1, 10)

    @settings(max_examples=200, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 40), max_size=40),
        num_ranks=st.integers(1, 5),
        spare=st.integers(0, 120),
    )
    def test_properties(self, lengths, num_ranks, spare):
        budget = max(lengths, default=1) + spare
        plan = plan_micro_batches(lengths, num_ranks, budget)
        assert plan == plan_micro_batches(list(lengths), num_ranks, budget)

        flat = [rows for rank in plan for rows in rank]
        assert sorted(itertools.chain(*flat)) == list(range(len(lengths)))
        assert all(padded(rows, lengths) <= budget for rows in flat)

        assert len(plan) == num_ranks
        (per_rank,) = {len(rank) for rank in plan}
        fewest = fewest_sorted_micro_batches(lengths, budget)
        assert per_rank == max(1, -(-fewest // num_ranks))
        num_empty = sum(not rows for rows in flat)
        assert num_empty == max(0, len(flat) - len(lengths))

        sizes = [padded(rows, lengths) for rows in flat]
        loads = [sum(padded(rows, lengths) for rows in rank) for rank in plan]
        assert max(loads) - min(loads) <= max(sizes) - min(sizes)

    @settings(max_examples=40, deadline=None)
    @given(
        lengths=st.lists(st.integers(1, 20), min_size=1, max_size=14),
        num_ranks=st.integers(1, 3),
        spare=st.integers(0, 60),
    )
    def test_the_largest_micro_batch_is_as_small_as_can_be(self, lengths, num_ranks, spare):
        plan = plan_micro_batches(lengths, num_ranks, max(lengths) + spare)
        num_slots = num_ranks * len(plan[0])
        largest = max(padded(rows, lengths) for rank in plan for rows in rank)
        assert largest <= smallest_largest(lengths, num_slots)

    @settings(max_examples=60, deadline=None)
    @given(lengths=st.lists(st.integers(1, 40), min_size=2, max_size=40), spare=st.integers(0, 90))
    def test_samples_of_similar_length_share_a_micro_batch(self, lengths, spare):
        (plan,) = plan_micro_batches(lengths, 1, max(lengths) + spare)
        spans = sorted(
            (min(lengths[r] for r in rows), max(lengths[r] for r in rows)) for rows in plan
        )
        for (_, longest), (shortest, _) in itertools.pairwise(spans):
            assert longest <= shortest


def family_shapes(lengths: list[int], prompts: list[int], families: list[int]) -> list[SampleShape]:
    return [
        SampleShape(needed=length - 1, prompt=prompts[family], family=family)
        for length, family in zip(lengths, families, strict=True)
    ]


def packed_tokens(rows: list[int], lengths: list[int], shapes: list[SampleShape]) -> int:
    """Ground truth: all tokens, and a prompt once."""
    prompts = {shapes[row].family: shapes[row].prompt for row in rows}
    return sum(prompts.values()) + sum(lengths[row] - shapes[row].prompt for row in rows)


def fewest_packed_micro_batches(lengths: list[int], shapes: list[SampleShape], budget: int) -> int:
    """Ground truth: the best of all ways to cut the samples, kept together by prompt."""
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    families = list(dict.fromkeys(shapes[index].family for index in by_length))
    order = [index for family in families for index in by_length if shapes[index].family == family]
    best = [0] + [10**9] * len(order)
    for end in range(1, len(order) + 1):
        for start in range(end):
            if packed_tokens(order[start:end], lengths, shapes) <= budget:
                best[end] = min(best[end], best[start] + 1)
    return best[-1]


class TestPlanWithSharedPrompts:
    def test_packed_counts_a_prompt_once(self):
        """Eight answers of 64 to a prompt of 256 are 768 tokens, not 2,560."""
        lengths = [320] * 8
        shapes = family_shapes(lengths, [256], [0] * 8)
        plan = plan_micro_batches(lengths, 1, 768, layout="packed", shapes=shapes)
        assert plan == [[list(range(8))]]
        (padded_plan,) = plan_micro_batches(lengths, 1, 768)
        assert [len(rows) for rows in padded_plan] == [2, 2, 2, 2]

    def test_auto_keeps_a_group_together_within_the_padded_budget(self):
        """By length the groups would alternate; nothing could be shared then."""
        families = [0, 1, 0, 1, 0, 1, 0, 1]
        lengths = [30, 29, 28, 27, 26, 25, 24, 23]
        shapes = family_shapes(lengths, [20, 20], families)
        plan = plan_micro_batches(lengths, 1, 120, layout="auto", shapes=shapes)
        assert plan == [[[0, 2, 4, 6], [1, 3, 5, 7]]]
        assert plan_micro_batches(lengths, 1, 120) == [[[0, 1, 2, 3], [4, 5, 6, 7]]]

    def test_auto_sorts_by_length_where_prompts_are_short(self):
        """One token is shared; keeping groups together would pad 20 of them."""
        families = [0, 1, 0, 1]
        lengths = [30, 30, 10, 10]
        shapes = family_shapes(lengths, [1, 1], families)
        plan = plan_micro_batches(lengths, 1, 60, layout="auto", shapes=shapes)
        assert plan == plan_micro_batches(lengths, 1, 60) == [[[0, 1], [2, 3]]]

    @settings(max_examples=200, deadline=None)
    @given(data=st.data())
    def test_properties(self, data):
        families = data.draw(st.lists(st.integers(0, 4), max_size=30))
        prompts = [data.draw(st.integers(1, 15)) for _ in range(5)]
        lengths = [prompts[family] + data.draw(st.integers(1, 12)) for family in families]
        shapes = family_shapes(lengths, prompts, families)
        num_ranks = data.draw(st.integers(1, 4))
        budget = max(lengths, default=1) + data.draw(st.integers(0, 90))
        for layout in ("auto", "packed"):
            plan = plan_micro_batches(lengths, num_ranks, budget, layout=layout, shapes=shapes)
            again = plan_micro_batches(
                list(lengths), num_ranks, budget, layout=layout, shapes=list(shapes)
            )
            assert plan == again
            flat = [rows for rank in plan for rows in rank]
            assert sorted(itertools.chain(*flat)) == list(range(len(lengths)))
            assert len(plan) == num_ranks
            (per_rank,) = {len(rank) for rank in plan}
            assert sum(not rows for rows in flat) == max(0, len(flat) - len(lengths))

            def size(rows: list[int], layout: str = layout) -> int:
                if layout == "packed":
                    return packed_tokens(rows, lengths, shapes)
                return padded(rows, lengths)

            sizes = [size(rows) for rows in flat]
            assert max(sizes) <= budget
            loads = [sum(size(rows) for rows in rank) for rank in plan]
            assert max(loads) - min(loads) <= max(sizes) - min(sizes)
            if layout == "packed":
                fewest = fewest_packed_micro_batches(lengths, shapes, budget)
                assert per_rank == max(1, -(-fewest // num_ranks))

    def test_a_sample_over_the_budget_is_refused_though_its_prompt_is_shared(self):
        shapes = family_shapes([11, 11], [9], [0, 0])
        with pytest.raises(ValueError, match="sample 0 has 11 tokens"):
            plan_micro_batches([11, 11], 1, 10, layout="packed", shapes=shapes)


class TestSplitMiniBatches:
    @settings(max_examples=60, deadline=None)
    @given(parts=st.integers(1, 9), extra=st.integers(0, 30), seed=st.integers(0, 2**63 - 1))
    def test_properties(self, parts, extra, seed):
        split = split_mini_batches(parts + extra, parts, seed)
        assert split == split_mini_batches(parts + extra, parts, seed)
        assert sorted(itertools.chain(*split)) == list(range(parts + extra))
        assert len(split) == parts
        sizes = [len(part) for part in split]
        assert max(sizes) - min(sizes) <= 1

    def test_seeds_permute_and_one_part_keeps_the_order(self):
        assert split_mini_batches(64, 2, 0) != split_mini_batches(64, 2, 1)
        assert split_mini_batches(64, 2, 0)[0] != list(range(32))
        assert split_mini_batches(5, 1, 7) == [[0, 1, 2, 3, 4]]

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="2 samples cannot be split into num_mini_batches=3"):
            split_mini_batches(2, 3, 0)
