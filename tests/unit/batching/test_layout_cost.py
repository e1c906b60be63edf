"""Which layout a micro-batch gets, from counts alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.batching.layout_cost import PairCosts, Rows, SampleShape, choose_rows, pair_costs

ALL = ("padded", "packed", "shared")
FREE = PairCosts(causal=0.0, masked=0.0)
# SmolLM2-135M: 106 M parameters in 30 layers of 576.
SMOLLM2 = pair_costs(hidden_size=576, num_layers=30, num_parameters=106_000_000)


def shape(needed: int, prompt: int, family: int) -> SampleShape:
    return SampleShape(needed=needed, prompt=prompt, family=family)


def choose(
    shapes: list[SampleShape],
    costs: PairCosts = FREE,
    *,
    kinds: tuple[str, ...] = ALL,
    max_tokens: int = 10**9,
) -> Rows:
    return choose_rows(shapes, costs, kinds=kinds, max_tokens=max_tokens)


class TestByHand:
    def test_a_group_computes_its_prompt_once(self):
        """Eight answers of 64 tokens to a prompt of 256; the last token predicts nothing."""
        group = [shape(256 + 63, 256, 0)] * 8
        rows = choose(group, SMOLLM2)
        assert (rows.kind, rows.trees, rows.width) == (
            "shared",
            ((tuple(range(8)),),),
            256 + 8 * 63,
        )
        assert choose(group, SMOLLM2, kinds=("padded",)).num_tokens == 8 * 319

    def test_two_groups_are_not_put_into_one_row(self):
        """It would save nothing, and attention is computed over whole rows."""
        groups = [shape(319, 256, family) for family in (0, 1) for _ in range(8)]
        rows = choose(groups, SMOLLM2)
        assert rows.trees == ((tuple(range(8)),), (tuple(range(8, 16)),))

    def test_nothing_to_share_and_no_padding_stays_padded(self):
        rows = choose([shape(50, 20, family) for family in range(6)], SMOLLM2)
        assert (rows.kind, rows.num_tokens) == ("padded", 300)
        assert rows.trees == tuple(((sample,),) for sample in range(6))

    def test_uneven_samples_are_packed(self):
        shapes = [shape(400, 20, 0), *[shape(40, 20, family) for family in range(1, 11)]]
        rows = choose(shapes, SMOLLM2)
        assert (rows.kind, rows.num_tokens) == ("packed", 800)
        assert rows.trees == (((0,),), tuple((sample,) for sample in range(1, 11)))

    def test_long_samples_are_not_shared_where_attention_decides(self):
        """Answers of 6,000 tokens to a prompt of 2,000: a row of 50,000 would cost more."""
        group = [shape(8_000, 2_000, 0)] * 8
        assert choose(group, FREE).kind == "shared"
        assert choose(group, FREE).num_tokens == 50_000
        assert choose(group, SMOLLM2).kind == "padded"

    def test_a_small_saving_is_none(self):
        """Estimates are not that exact, and padded rows need no mask."""
        group = [shape(100, 5, 0)] * 8
        assert choose(group, kinds=("shared",)).num_tokens == 765
        assert choose(group).kind == "padded"
        assert choose([shape(100, 10, 0)] * 8).kind == "shared"

    def test_cost_of_every_layout(self):
        costs = PairCosts(causal=0.5, masked=0.25)
        shapes = [shape(4, 2, 0), shape(3, 2, 0)]
        # Two rows of 4: 4 tokens and 10 pairs each.
        assert choose(shapes, costs, kinds=("padded",)).cost == 2 * (4 + 0.5 * 10)
        # Two rows of 4 and 16 pairs rather than one of 7 and 49.
        assert choose(shapes, costs, kinds=("packed",)).cost == 2 * (4 + 0.25 * 16)
        # One row: 2 of the prompt, 2 and 1 of the answers.
        assert choose(shapes, costs, kinds=("shared",)).cost == 5 + 0.25 * 25

    def test_pairs_in_tokens(self):
        costs = pair_costs(hidden_size=10, num_layers=3, num_parameters=600)
        once = pair_costs(hidden_size=10, num_layers=3, num_parameters=1200)
        assert costs.causal == pytest.approx(2 * once.causal)
        assert costs.masked == pytest.approx(2 * once.masked)
        # 4 x 10 operations in 3 layers against 2 per parameter, before the overheads of 1 or more.
        assert costs.causal >= 0.1


class TestLimits:
    def test_rows_over_the_budget_are_left_out(self):
        """Three trees of 6, 5 and 5: one row of 16, but two rows of 10."""
        shapes = [shape(6, 1, 0), shape(5, 1, 1), shape(5, 1, 2)]
        dear = PairCosts(causal=1.0, masked=1.0)
        assert choose(shapes, dear, kinds=("packed",)).num_tokens == 18
        assert choose(shapes, dear, kinds=("packed",), max_tokens=17).num_tokens == 16

    def test_without_a_choice_the_smallest_is_taken(self):
        shapes = [shape(6, 1, 0), shape(5, 1, 1)]
        assert choose(shapes, kinds=("padded",), max_tokens=3).num_tokens == 12
        assert choose(shapes, max_tokens=3).num_tokens == 11

    def test_samples_without_a_prediction_take_no_room(self):
        rows = choose([shape(0, 0, 0), shape(9, 3, 1), shape(0, 0, 0), shape(2, 1, 2)])
        assert (rows.kind, rows.trees, rows.width) == ("packed", (((1,), (3,)),), 11)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_layout_holds_every_sample_once_and_the_cheapest_is_taken(data):
    families = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9))
    prompts = [data.draw(st.integers(1, 12)) for _ in range(4)]
    shapes = [shape(prompts[f] + data.draw(st.integers(0, 9)), prompts[f], f) for f in families]
    costs = PairCosts(causal=data.draw(st.floats(0, 0.5)), masked=data.draw(st.floats(0, 0.5)))
    by_kind = {kind: choose(shapes, costs, kinds=(kind,)) for kind in ALL}
    for rows in by_kind.values():
        samples = [sample for row in rows.trees for tree in row for sample in tree]
        assert sorted(samples) == list(range(len(shapes)))
        tokens = [
            sum(
                shapes[tree[0]].prompt + sum(shapes[s].needed - shapes[s].prompt for s in tree)
                for tree in row
            )
            for row in rows.trees
        ]
        assert max(tokens) == rows.width
    for tree in itertools.chain(*by_kind["shared"].trees):
        assert len({shapes[sample].family for sample in tree}) == 1
    assert len([*itertools.chain(*by_kind["shared"].trees)]) == len(set(families))

    chosen = choose(shapes, costs)
    assert chosen == by_kind[chosen.kind]
    cheapest = min(rows.cost for rows in by_kind.values())
    if chosen.kind == "padded":
        assert chosen.cost * 0.95 <= cheapest * (1 + 1e-9)
    else:
        assert chosen.cost == cheapest
        assert chosen.cost < by_kind["padded"].cost
