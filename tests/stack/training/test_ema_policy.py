"""The EMA of the policy: its values, its shards, its checkpoint and its saved model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.stack.training.conftest import Seen
from tests.stack.training.ema_policy_scenarios import DECAY

pytestmark = [pytest.mark.stack, pytest.mark.slow]
ONE, TWO = (0, 2, 3), (0, 1, 2, 3)
PLACES = [*((1, stage) for stage in ONE), *((2, stage) for stage in TWO)]
BFLOAT16 = (0, 3)


def ranks_of(followed: Seen, scenario: str, world_size: int) -> list[dict[str, Any]]:
    return (
        [followed.one[scenario]] if world_size == 1 else [rank[scenario] for rank in followed.two]
    )


def by_hand(weights: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The EMA after every step, in float64; the first weights are the initial ones."""
    now = {name: value.double() for name, value in weights[0].items()}
    averages = []
    for latest in weights[1:]:
        now = {n: DECAY * value + (1 - DECAY) * latest[n].double() for n, value in now.items()}
        averages.append(now)
    return averages


@pytest.mark.parametrize(("world_size", "stage"), PLACES)
def test_the_ema_follows_every_step(followed: Seen, world_size, stage):
    for result in ranks_of(followed, f"average_zero_{stage}", world_size):
        expected = by_hand(result["seen"])
        assert len(expected) == 3
        for found, truth in zip(result["averages"], expected, strict=True):
            assert found.keys() == truth.keys()
            for name, value in truth.items():
                torch.testing.assert_close(found[name].double(), value, rtol=1e-6, atol=1e-7)
        # Neither the weights before the last step, nor those after it.
        name = "model.embed_tokens.weight"
        for other in (result["seen"][0], result["seen"][-1], expected[-2]):
            assert float((result["averages"][-1][name] - other[name]).abs().max()) > 1e-4


@pytest.mark.parametrize("stage", BFLOAT16)
def test_bfloat16_is_averaged_in_float32(followed: Seen, stage):
    for result in ranks_of(followed, f"average_bfloat16_zero_{stage}", 2):
        truth = by_hand(result["seen"])[-1]
        for name, value in result["averages"][-1].items():
            assert value.dtype == torch.bfloat16
            # Rounded once, when it is handed out.
            torch.testing.assert_close(
                value.double(), truth[name], rtol=2**-8 * (1 + 1e-4), atol=1e-9
            )


@pytest.mark.parametrize("stage", TWO)
def test_each_rank_holds_its_own_part_alone(followed: Seen, stage):
    first, second = (result["parts"] for result in ranks_of(followed, f"average_zero_{stage}", 2))
    total = sum(value.numel() for value in followed.one["average_zero_0"]["seen"][0].values())
    if stage == 0:
        assert sum(first.values()) == sum(second.values()) == total
        return
    assert sum(first.values()) + sum(second.values()) == total
    assert max(sum(first.values()), sum(second.values())) < 0.6 * total


@pytest.mark.parametrize("stage", [0, 3])
def test_training_with_an_ema_is_the_same(followed: Seen, stage):
    for averaged, plain in zip(
        ranks_of(followed, f"average_zero_{stage}", 2),
        ranks_of(followed, f"no_average_zero_{stage}", 2),
        strict=True,
    ):
        for name, value in plain["weights"].items():
            assert torch.equal(averaged["weights"][name], value), name


@pytest.mark.parametrize(
    ("world_size", "scenario"),
    [
        *((size, f"average_zero_{stage}") for size, stage in PLACES),
        *((2, f"average_bfloat16_zero_{stage}") for stage in BFLOAT16),
    ],
)
def test_a_resumed_ema_equals_the_straight_one(followed: Seen, world_size, scenario):
    for result in ranks_of(followed, scenario, world_size):
        for name, value in result["averages"][-1].items():
            assert torch.equal(result["resumed"][name], value), name


@pytest.mark.parametrize(("world_size", "stage"), PLACES)
def test_the_ema_loads_in_transformers(followed: Seen, world_size, stage):
    folder = followed.folder / f"saved_average_zero_{stage}_{world_size}"
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    result = ranks_of(followed, f"average_zero_{stage}", world_size)[0]
    # The tied head is saved once, under the name of the embedding.
    assert loaded.keys() - result["averages"][-1].keys() == {"lm_head.weight"}
    assert torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"])
    for name, value in result["averages"][-1].items():
        assert torch.equal(loaded[name], value), name
    assert (folder / "tokenizer_config.json").is_file()


def test_a_checkpoint_without_an_ema_is_refused(followed: Seen):
    errors = [
        followed.one["no_average_saved"],
        *(rank["no_average_saved"] for rank in followed.two),
    ]
    for result in errors:
        assert "has no EMA: it was written with training.ema_decay=null" in result["error"]
