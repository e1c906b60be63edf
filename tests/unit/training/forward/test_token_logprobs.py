"""Log-probabilities and entropy against plain log_softmax, across edges of chunks."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from rlhf_ray.training.forward import token_logprobs as module
from rlhf_ray.training.forward.token_logprobs import token_logprobs, within_support


def plain(logits, targets, temperature):
    """Ground truth: the whole log_softmax at once."""
    logprobs = (logits / temperature).log_softmax(dim=1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropy


def numbers(rows: int, vocabulary: int = 11, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(rows)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(0, vocabulary, (rows,), generator=generator)


@pytest.fixture
def chunks_of_four_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", {"cpu": 4 * 11})


@pytest.mark.usefixtures("chunks_of_four_rows")
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradient_equal_log_softmax(rows, temperature):
    logits, targets = numbers(rows)
    weights = torch.linspace(-1, 2, rows, dtype=torch.float64)
    results = []
    for function in (token_logprobs, plain):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = function(leaf, targets, temperature)
        (logprobs * weights).sum().backward()
        results.append((logprobs.detach(), entropy.detach(), leaf.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("chunks_of_four_rows")
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_gradcheck(temperature):
    logits, targets = numbers(6)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, targets, temperature)[0], logits)


def test_one_row_that_is_larger_than_a_chunk(monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", {"cpu": 3})
    logits, targets = numbers(2)
    found, expected = (f(logits, targets, 1.0)[0] for f in (token_logprobs, plain))
    torch.testing.assert_close(found, expected)


def test_no_rows():
    logits = torch.zeros(0, 11, requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.zeros(0, dtype=torch.int64), 1.0)
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 11)


def test_banned_tokens_have_no_weight_and_no_gradient():
    logits = torch.tensor([[0.0, -math.inf, math.log(3.0)], [-math.inf, 0.0, -math.inf]])
    logits.requires_grad_()
    logprobs, entropy = token_logprobs(logits, torch.tensor([2, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([math.log(0.75), 0.0])
    # Entropy of (1/4, 3/4), and of certainty.
    assert entropy.tolist() == pytest.approx(
        [0.25 * math.log(4) + 0.75 * math.log(4 / 3), 0.0], abs=1e-6
    )
    logprobs.sum().backward()
    assert logits.grad is not None
    expected = torch.tensor([[-0.25, 0.0, 0.25], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-6)


def test_a_banned_target_is_minus_infinity():
    logits = torch.tensor([[0.0, -math.inf]])
    assert token_logprobs(logits, torch.tensor([1]), 1.0)[0].item() == -math.inf


def test_computed_in_float32_whatever_the_dtype():
    logits, targets = numbers(64, vocabulary=500, dtype=torch.bfloat16)
    leaf = logits.clone().requires_grad_()
    logprobs, entropy = token_logprobs(leaf, targets, 0.8)
    assert logprobs.dtype == entropy.dtype == torch.float32
    expected, expected_entropy = plain(logits.double(), targets, 0.8)
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=1e-5, atol=1e-5)
    logprobs.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == torch.bfloat16


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[3000.0, 2999.0], [-3000.0, -2999.0]])
    logprobs, _ = token_logprobs(logits, torch.tensor([0, 0]), 0.5)
    assert logprobs.tolist() == pytest.approx(
        [-math.log1p(math.exp(-2)), -2 - math.log1p(math.exp(-2))], rel=1e-5
    )


def test_the_entropy_has_no_gradient_unless_it_is_asked_for():
    logits, targets = numbers(3)
    logits.requires_grad_()
    assert not token_logprobs(logits, targets, 1.0)[1].requires_grad
    assert token_logprobs(logits, targets, 1.0, entropy_gradient=True)[1].requires_grad


@pytest.mark.usefixtures("chunks_of_four_rows")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_gradient_of_both_equals_that_of_log_softmax(temperature):
    logits, targets = numbers(9)
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64)
    gradients = []
    for function in (partial(token_logprobs, entropy_gradient=True), plain):
        leaf = logits.clone().requires_grad_()
        logprobs, entropy = function(leaf, targets, temperature)
        (logprobs * weights - entropy * weights.flip(0)).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: token_logprobs(x, targets, temperature, entropy_gradient=True), logits
    )


def test_banned_tokens_have_no_gradient_of_the_entropy():
    leaf = torch.tensor([[0.0, -math.inf, math.log(3.0)], [-math.inf, 0.0, -math.inf]])
    leaf.requires_grad_()
    _, entropy = token_logprobs(leaf, torch.tensor([2, 1]), 1.0, entropy_gradient=True)
    entropy.sum().backward()
    # p (-log p - H) for p = 1/4 and 3/4.
    slope = 0.25 * (math.log(4) - (0.25 * math.log(4) + 0.75 * math.log(4 / 3)))
    assert leaf.grad is not None
    expected = torch.tensor([[slope, 0.0, -slope], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


def test_logprobs_within_the_support():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], requires_grad=True)
    kept = torch.tensor([[2, 0, -1], [3, 1, 2]], dtype=torch.int32)
    found, places = within_support(logits, torch.tensor([0, 2]), kept)
    assert found.tolist() == [[3.0, 1.0, -math.inf], [8.0, 6.0, 7.0]]
    assert places.tolist() == [1, 2]
    logprobs, entropy = token_logprobs(found, places, 1.0)
    assert logprobs.tolist() == pytest.approx(
        [-math.log(1 + math.e**2), -math.log(math.e + 1 + math.e**-1)], rel=1e-5
    )
    assert entropy[0].item() < math.log(2)
    logprobs.sum().backward()
    assert logits.grad is not None
    # Nothing reaches the tokens that could not be sampled.
    assert logits.grad[0, [1, 3]].tolist() == [0.0, 0.0]
    assert logits.grad[1, 0].item() == 0.0
    assert logits.grad[0, 0].item() == pytest.approx(1 - 1 / (1 + math.e**2), rel=1e-5)


def test_no_support_is_the_whole_vocabulary():
    logits, targets = numbers(3)
    found, places = within_support(logits, targets, None)
    assert found is logits
    assert places is targets


def test_a_target_that_could_not_be_sampled_is_not_a_number():
    """It must not pass for another token's probability; the next row is untouched."""
    logits = torch.zeros(2, 3)
    kept = torch.tensor([[0, 1], [0, 1]], dtype=torch.int32)
    found, places = within_support(logits, torch.tensor([2, 1]), kept)
    logprobs, _ = token_logprobs(found, places, 1.0)
    assert logprobs[0].isnan()
    assert logprobs[1].item() == pytest.approx(math.log(0.5))


def test_shapes_and_temperature_are_checked():
    logits, targets = numbers(3)
    with pytest.raises(AssertionError, match=r"2\] targets for \[3, 11\]"):
        token_logprobs(logits, targets[:2], 1.0)
    with pytest.raises(AssertionError, match=r"must be \[M, V\]"):
        token_logprobs(logits[None], targets, 1.0)
    with pytest.raises(AssertionError, match="temperature is 0"):
        token_logprobs(logits, targets, 0.0)
