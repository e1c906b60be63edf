"""Models larger than a rank: ZeRO-3 shards them while they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.testing.tiny import tiny_random
from tests.stack.training.conftest import SIZES, Runs, Seen, make_inputs
from tests.stack.training.samples import VOCABULARY
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = pytest.mark.stack

# The factors of the adapter of a layer: 2 x (32 + 32).
ADAPTER_ELEMENTS = 128


def test_no_role_moves_a_whole_model(seen: Seen):
    for rank in seen.two:
        found = rank["moves"]
        assert len(found) == 11
        for role, counts in found.items():
            most = ADAPTER_ELEMENTS if role == "policy with an adapter" else 0
            assert counts["moved"] <= most, role
            assert counts["whole"] == 0, f"{role} has parameters that are not sharded"


def test_ranks_with_unlike_models_are_refused(seen: Seen):
    """Not left to wait for each other."""
    for rank in seen.two:
        error = rank["unlike_models"]["error"]
        assert "not all ranks have the model that rank 0 reads" in error
    assert "model.layers.1." in seen.two[1]["unlike_models"]["error"]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_weights_that_are_not_finite_are_refused(seen: Seen, zero_stage):
    for rank in seen.two:
        error = rank[f"not_finite_zero_{zero_stage}"]["error"]
        assert "model.layers.1.mlp.up_proj.weight" in error
        assert "model.embed_tokens.weight" in error
        assert "hold NaN or infinite numbers" in error


@pytest.mark.parametrize("scenario", ["gathers", "gathers_recomputed", "with_a_fused_head"])
def test_the_head_is_gathered_once_for_all_chunks(seen: Seen, scenario):
    """Twice for the head, forward and backward, and twice for the embedding that it is tied to."""
    expected = seen.one["in_chunks"]
    for rank in seen.two:
        found = rank[scenario]
        assert found["gathered"] == 4 * found["micro_batches"]
        assert relative_difference(found["gradient"], expected["gradient"]) < 1e-5
        assert_same_metrics(found["metrics"], expected["metrics"], rel=1e-5)


def test_a_frozen_head_is_gathered_once_for_all_chunks(seen: Seen):
    """The embedding is frozen, too, and takes no part in the backward pass."""
    for rank in seen.two:
        found = rank["gathers_of_a_frozen_head"]
        assert found["gathered"] == 3 * found["micro_batches"]


@pytest.mark.parametrize("scenario", ["two_steps_nothing_kept", "two_steps_hpz", "passed_on"])
def test_settings_of_zero_change_no_result(seen: Seen, scenario):
    expected = seen.two[0]["two_steps_zero_0"]
    for rank in seen.two:
        found = rank[scenario]
        assert relative_difference(found["weights"], expected["weights"]) < 1e-5
        for one, other in zip(found["metrics"], expected["metrics"], strict=True):
            assert_same_metrics(one, other, rel=1e-5)


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_in_bfloat16_round_the_same_update(seen: Seen, stage):
    exact = seen.two[0][f"bfloat16_zero_{stage}"]
    for rank in seen.two:
        found = rank[f"gradients_in_bfloat16_zero_{stage}"]
        assert found["metrics"] != exact["metrics"], "the setting reaches DeepSpeed"
        for name, value in exact["weights"].items():
            assert torch.allclose(found["weights"][name], value, atol=0.03, rtol=0.03), name


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Starts of a model of 100 MB, in processes that have done nothing else."""
    runs = Runs(tmp_path_factory.mktemp("sizes"), ["sizes"], make_two_models)
    try:
        return runs.seen("sizes")
    finally:
        runs.close()


def make_two_models(folder: Path) -> None:
    make_inputs(folder)
    shape = TinySizes(
        hidden=512,
        intermediate=1536,
        num_layers=8,
        num_heads=8,
        num_key_value_heads=8,
        head_size=64,
    )
    tiny_random(folder / "policy", seed=0, vocab_size=VOCABULARY, sizes=shape)
    tiny_random(folder / "small", seed=0, vocab_size=VOCABULARY, sizes=SIZES)


@pytest.mark.nightly
@pytest.mark.parametrize("start", ["random", "converted"])
def test_a_rank_holds_its_share_while_it_starts(sizes: Seen, start):
    """One layer and the shards: far less than the model, and half with two ranks.

    Of a model that is converted, rank 0 alone holds a whole copy.
    """
    alone = sizes.one[start]
    weights = alone["weights"] / (2.0 if start == "converted" else 1.0)
    assert alone["peak"] > 0.9 * weights
    ranks = sizes.two if start == "random" else sizes.two[1:]
    for rank in ranks:
        assert rank[start]["peak"] < 0.7 * weights
