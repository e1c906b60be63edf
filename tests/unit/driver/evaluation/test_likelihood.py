"""Likelihood of demonstrations: NaN is no number of a report."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.evaluation.likelihood import measure_likelihood
from rlhf_ray.records.supervised import LabelledTokens


def measured(logprobs: list[float]):
    example = LabelledTokens(
        token_ids=torch.tensor([1, 2, 3]), loss_mask=torch.tensor([False, False, True])
    )
    engines: Any = SimpleNamespace(names=["generator 0"], score_shares=lambda shares: shares)
    waiter: Any = SimpleNamespace(results=lambda *_, **__: [[logprobs]])
    return measure_likelihood(engines, waiter, [example], at_once=4, timeout_s=9)


def test_nan_of_a_learnt_token_ends_the_evaluation():
    assert measured([math.nan, -2.0]).total_nats == 2.0
    with pytest.raises(RunFailed, match="the log-probability NaN"):
        measured([-1.0, math.nan])
