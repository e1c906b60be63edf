"""Weights that are not finite are found, in every number format."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.checks.finite import check_finite, has_no_nan, is_finite, not_finite

BAD = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 17, 4095])
@pytest.mark.parametrize("value", BAD)
def test_one_number(dtype, place, value):
    tensor = torch.randn(4096).to(dtype)
    assert is_finite(tensor)
    tensor[place] = value
    assert not is_finite(tensor)
    assert has_no_nan(tensor) is (value == value)


def test_extremes_of_a_format_are_finite():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        limits = torch.finfo(dtype)
        assert is_finite(torch.tensor([limits.max, limits.min], dtype=dtype))


def test_tensors_without_such_numbers():
    assert is_finite(torch.arange(3))
    assert is_finite(torch.empty(0))
    assert has_no_nan(torch.zeros(0))


def test_the_weight_is_named_and_a_mask_may_be_infinite():
    last = nn.Linear(2, 2)
    module = nn.Sequential(nn.Linear(2, 2), last)
    module.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(module, "folder")
    with torch.no_grad():
        last.weight[0, 1] = float("nan")
    with pytest.raises(RequestError, match=r"model.path is 'folder': its weights 1.weight hold Na"):
        check_finite(module, "folder")


def test_many_names_are_counted():
    assert "a, b, c and 2 more hold NaN" in not_finite(["a", "b", "c", "d", "e"])
