"""Sums, counts and means over the ragged layout against loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from rlhf_ray.algorithms.ragged import (
    count_by_segment,
    last_masked_tokens,
    sequence_means,
    spread_over_tokens,
    sum_by_segment,
)
from tests.unit.algorithms.ragged_cases import flat_mask, poisoned, sampled, samples, sizes


@settings(max_examples=100, deadline=None)
@given(samples(1))
def test_against_loops(case):
    masks, rows = case
    mask, lengths = flat_mask(masks), sizes(masks)
    values = poisoned(rows, mask).requires_grad_()
    kept = [sampled(row, row_mask) for row, row_mask in zip(rows, masks, strict=True)]
    totals = [sum(row) for row in kept]
    counts = [len(row) for row in kept]
    means = [total / count if count else 0.0 for total, count in zip(totals, counts, strict=True)]

    assert count_by_segment(mask, lengths).tolist() == counts
    assert sum_by_segment(values.detach(), lengths, mask).tolist() == pytest.approx(totals)
    spread = [mean * keep for mean, row in zip(means, masks, strict=True) for keep in row]
    result = sequence_means(values, lengths, mask)
    assert result.tolist() == pytest.approx(spread)
    per_sample = torch.tensor(means, dtype=torch.float64)
    assert spread_over_tokens(per_sample, lengths, mask).tolist() == pytest.approx(spread)
    last = [keep and not any(row[place + 1 :]) for row in masks for place, keep in enumerate(row)]
    assert last_masked_tokens(lengths, mask).tolist() == last

    # The sum of a sequence's means is its sum: a gradient of 1 at every masked token.
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx(mask.double().tolist())
