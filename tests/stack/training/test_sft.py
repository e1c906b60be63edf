"""Supervised fine-tuning on real ranks equals plain torch's cross-entropy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.models.unloaded.random_weights import new_policy
from tests.stack.training.conftest import Seen
from tests.stack.training.samples import LENGTHS, load_samples
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = pytest.mark.stack
STAGES = (0, 1, 2, 3)


def plain_cross_entropy(folder: Path) -> tuple[float, dict[str, Tensor]]:
    """Ground truth in float64: one sample after the other, labels of -100 off the mask."""
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float64)
    data, total, start = load_samples(folder), torch.zeros((), dtype=torch.float64), 0
    for length in LENGTHS:
        ids = data["token_ids"][start : start + length]
        labels = torch.where(data["loss_mask"][start : start + length], ids, -100)
        start += length
        logits = model(input_ids=ids[None]).logits[0]
        total = total + F.cross_entropy(logits[:-1], labels[1:], reduction="sum")
    loss = total / int(data["loss_mask"].sum())
    loss.backward()
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), {f"model.{name}": value for name, value in gradient.items()}


def test_loss_and_gradient_are_plain_cross_entropy(seen: Seen):
    result = seen.one["sft"]
    loss, gradient = plain_cross_entropy(seen.folder)
    assert result["metrics"]["train/loss"] == pytest.approx(loss, rel=1e-5)
    assert relative_difference(result["gradient"], gradient) < 1e-5
    assert result["metrics"]["tokens/trained"] == float(
        load_samples(seen.folder)["loss_mask"].sum()
    )


@pytest.mark.parametrize("stage", STAGES)
def test_two_uneven_ranks_are_one(seen: Seen, stage):
    one = seen.one["sft"]
    own = [rank[f"sft_zero_{stage}"]["num_own_tokens"] for rank in seen.two]
    assert own[0] != own[1]
    assert sum(own) == one["num_own_tokens"]
    for rank in seen.two:
        two = rank[f"sft_zero_{stage}"]
        assert relative_difference(two["gradient"], one["gradient"]) < 1e-6
        for name in ("before", "metrics", "after"):
            assert_same_metrics(two[name], one[name], rel=2e-6)


@pytest.mark.parametrize("where", ["one rank", "two ranks, ZeRO 3"])
def test_packing_changes_nothing(seen: Seen, where):
    """Several samples in a row, without attention across them."""
    padded = seen.one["sft"]
    if where == "one rank":
        packed = seen.one["sft_packed"]
        rows = [sum(shape[0] for shape in result["rows"]) for result in (packed, padded)]
        assert rows[0] < rows[1], "several samples share a row"
    else:
        packed = seen.two[0]["sft_packed_zero_3"]
    assert relative_difference(packed["gradient"], padded["gradient"]) < 1e-5
    for name in ("before", "metrics", "after"):
        assert_same_metrics(packed[name], padded[name], rel=1e-5)


def test_an_evaluation_is_the_loss_and_learns_nothing(seen: Seen):
    for result in (seen.one["sft"], *(rank["sft_zero_3"] for rank in seen.two)):
        before, after = result["before"], result["after"]
        assert before["eval/loss"] == pytest.approx(result["metrics"]["train/loss"], rel=1e-6)
        assert before["eval/perplexity"] == pytest.approx(math.exp(before["eval/loss"]))
        assert after["eval/loss"] < before["eval/loss"], "the step lowers the loss"


def test_several_steps_in_one_update(seen: Seen):
    result = seen.one["sft_several_steps"]
    losses = [metrics["train/loss"] for metrics in result["apart"]]
    assert losses[1] < losses[0]
    assert result["together"]["train/loss"] == pytest.approx(sum(losses) / 2, rel=1e-6)
    for name, value in result["weights_apart"].items():
        assert torch.equal(result["weights"][name], value), name


def test_random_weights_come_from_the_seed_on_every_rank(seen: Seen):
    """The same whether a rank makes all of them, or rank 0 a layer at a time for all ranks."""
    model = ModelConfig(path=str(seen.folder / "policy"), random_weights=True)
    expected = new_policy(model, dtype="float32", seed=1).state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(seen.folder / "policy").state_dict()
    for rank in seen.two:
        for scenario in ("from_random_weights", "from_random_weights_zero_3"):
            weights = rank[scenario]["weights"]
            assert len(weights) == len(expected) - 1, "the tied head has the name of the embedding"
            for key, value in weights.items():
                assert torch.equal(value, expected[key]), key
            assert not torch.equal(expected["lm_head.weight"], loaded["lm_head.weight"])
