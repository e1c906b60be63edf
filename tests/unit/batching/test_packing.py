"""Several samples in a row, and their common prompt once: where every token is, whom it sees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch, find_targets, lay_out
from rlhf_ray.batching.layout_cost import PairCosts, choose_rows
from rlhf_ray.batching.packing import lay_out_packed, sample_shapes

T, F = True, False
FREE = PairCosts(causal=0.0, masked=0.0)


def ragged(samples: list[list[int]], masks: list[list[bool]]) -> tuple[Tensor, Tensor, Tensor]:
    assert [len(tokens) for tokens in samples] == [len(mask) for mask in masks]
    return (
        torch.tensor([token for tokens in samples for token in tokens]),
        torch.tensor([len(tokens) for tokens in samples]),
        torch.tensor([keep for mask in masks for keep in mask]),
    )


def families(samples: list[list[int]], masks: list[list[bool]]) -> list[int]:
    token_ids, lengths, mask = ragged(samples, masks)
    shapes = sample_shapes(token_ids, find_targets(lengths, mask, range(len(samples))))
    return [shape.family for shape in shapes]


def packed(
    data: tuple[Tensor, Tensor, Tensor], rows: list[int], kind: str, costs: PairCosts = FREE
) -> MicroBatch:
    token_ids, lengths, mask = data
    targets = find_targets(lengths, mask, rows)
    shapes = sample_shapes(token_ids, targets)
    chosen = choose_rows(shapes, costs, kinds=(kind,), max_tokens=10**9)
    return lay_out_packed(token_ids, targets, shapes, chosen)


# Two samples of one prompt, one of them with a hole; the last token of each predicts nothing.
GROUP = ragged([[7, 8, 9, 1, 2], [7, 8, 9, 3, 4, 5]], [[F, F, F, T, T], [F, F, F, T, F, T]])


class TestByHand:
    def test_a_tree(self):
        batch = packed(GROUP, [0, 1], "shared")
        assert batch.packing is not None
        assert batch.input_ids.tolist() == [[7, 8, 9, 1, 3, 4]]
        assert batch.packing.position_ids.tolist() == [[0, 1, 2, 3, 3, 4]]
        # Both first answer tokens are predicted by the end of the prompt.
        assert batch.hidden_index.tolist() == [2, 3, 2, 5]
        assert batch.targets.tolist() == [1, 2, 3, 5]
        assert batch.token_index.tolist() == [3, 4, 8, 10]
        assert batch.num_targets == 4
        assert batch.packing.visible.int().tolist() == [
            [
                [1, 0, 0, 0, 0, 0],
                [1, 1, 0, 0, 0, 0],
                [1, 1, 1, 0, 0, 0],
                [1, 1, 1, 1, 0, 0],
                [1, 1, 1, 0, 1, 0],
                [1, 1, 1, 0, 1, 1],
            ]
        ]

    def test_packed_without_sharing(self):
        batch = packed(GROUP, [1, 0], "packed")
        assert batch.packing is not None
        assert batch.input_ids.tolist() == [[7, 8, 9, 3, 4, 7, 8, 9, 1]]
        assert batch.packing.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3]]
        assert batch.hidden_index.tolist() == [2, 4, 7, 8]
        assert batch.packing.visible[0, 5:, :5].sum() == 0

    def test_rows_are_padded_and_padding_sees_padding_alone(self):
        dear = PairCosts(causal=1.0, masked=1.0)
        data = ragged([[1, 2, 3, 4, 5], [6, 7, 8]], [[F, F, T, T, T], [F, T, T]])
        batch = packed(data, [0, 1], "packed", dear)
        assert batch.packing is not None
        assert batch.input_ids.tolist() == [[1, 2, 3, 4], [6, 7, 0, 0]]
        assert batch.hidden_index.tolist() == [1, 2, 3, 4, 5]
        assert batch.packing.visible[1].int().tolist() == [
            [1, 0, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 1],
        ]

    def test_an_answer_of_one_token_adds_nothing_to_the_row(self):
        data = ragged([[7, 8, 1], [7, 8, 2]], [[F, F, T], [F, F, T]])
        batch = packed(data, [0, 1], "shared")
        assert batch.input_ids.tolist() == [[7, 8]]
        assert batch.hidden_index.tolist() == [1, 1]
        assert batch.targets.tolist() == [1, 2]

    def test_a_sample_without_a_prediction_is_left_out(self):
        data = ragged([[7, 8, 1], [7, 8, 2]], [[F, F, F], [F, F, T]])
        batch = packed(data, [0, 1], "shared")
        assert batch.input_ids.tolist() == [[7, 8]]
        assert batch.token_index.tolist() == [5]


class TestWhoSharesAPrompt:
    def test_equal_tokens_up_to_the_first_sampled_one(self):
        samples = [[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 9, 9]]
        masks = [[F, F, T, T], [F, F, T], [F, F, T, F, T]]
        assert families(samples, masks) == [0, 0, 0]

    @pytest.mark.parametrize(
        ("other", "mask"),
        [
            ([1, 9, 3], [F, F, T]),  # another token
            ([2, 1, 3], [F, F, T]),  # another order
            ([1, 2, 3, 4], [F, F, F, T]),  # it goes on
            ([1, 2], [F, T]),  # it ends sooner
            ([1, 2 + 2**40, 3], [F, F, T]),  # equal in its lower bytes
        ],
    )
    def test_prompts_that_only_look_alike(self, other, mask):
        assert families([[1, 2, 3], other], [[F, F, T], mask]) == [0, 1]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_prediction_sees_its_own_sample_and_nothing_else(data):
    """Whatever the rows: visible tokens and positions are those of the sample alone."""
    prompts = [[1], [1, 2], [1, 2, 3], [2, 2]]
    samples, masks = [], []
    for _ in range(data.draw(st.integers(1, 7))):
        prompt = data.draw(st.sampled_from(prompts))
        size = data.draw(st.integers(0, 6))
        samples.append(
            prompt + data.draw(st.lists(st.integers(1, 3), min_size=size, max_size=size))
        )
        masks.append(
            [F] * len(prompt) + data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        )
    rows = data.draw(st.lists(st.sampled_from(range(len(samples))), unique=True, min_size=1))
    ragged_data = ragged(samples, masks)
    padded = lay_out(*ragged_data, None, rows)
    if padded.num_targets == 0:
        return
    kind = data.draw(st.sampled_from(["packed", "shared"]))
    price = data.draw(st.sampled_from([0.0, 0.05, 1.0]))
    batch = packed(ragged_data, rows, kind, PairCosts(causal=price, masked=price))
    assert batch.packing is not None
    for name in ("targets", "token_index", "num_targets"):
        assert torch.equal(
            torch.as_tensor(getattr(batch, name)), torch.as_tensor(getattr(padded, name))
        )
    position_ids, visible = batch.packing
    width = batch.input_ids.shape[1]
    wanted = iter((rows_index, column) for rows_index in rows for column in range(1, 10))
    truth = [
        (sample, column)
        for sample, column in wanted
        if column < len(samples[sample]) and masks[sample][column]
    ]
    for (sample, column), index in zip(truth, batch.hidden_index.tolist(), strict=True):
        row, place = divmod(index, width)
        seen = visible[row, place]
        assert batch.input_ids[row][seen].tolist() == samples[sample][:column]
        assert position_ids[row][seen].tolist() == list(range(column))
    assert bool(visible.diagonal(dim1=1, dim2=2).all()), "a token that sees nothing"
