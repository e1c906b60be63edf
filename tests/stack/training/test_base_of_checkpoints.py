"""Checkpoints have what is trained, and the rest of the model by its sums alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.stack.training.conftest import Seen

pytestmark = [pytest.mark.stack, pytest.mark.slow]

# The first train an adapter. In slices some layers are trained, and an adapter is refused.
ADAPTED = ("bfloat16", "zero_2", "zero_3")
SLICED = ("slices_1", "slices_3")
PLACES = (*ADAPTED, *SLICED)


def results(seen: Seen, scenario: str) -> list[dict[str, Any]]:
    return [seen.one[scenario]] if scenario == "bfloat16" else [rank[scenario] for rank in seen.two]


@pytest.mark.parametrize("scenario", ADAPTED)
def test_bytes_are_those_of_the_adapter(bases: Seen, scenario):
    for result in results(bases, scenario):
        found = result["files"]["without"]
        assert all(".lora_" in key for key in found), sorted(found)
        weights = [size for key, (_, size) in found.items() if key.startswith("weight:")]
        assert sum(num_bytes for num_bytes, _ in found.values()) == 12 * sum(weights)
        # r * (in + out) of every layer; see `SIZES`.
        of_layer = 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
        assert sum(weights) == 2 * of_layer
        assert result["trained"] == 2 * 2 * 7
        base = [key for key in result["files"]["with"] if ".lora_" not in key]
        assert any("embed_tokens" in key for key in base), "as releases before wrote it"


@pytest.mark.parametrize("scenario", SLICED)
def test_bytes_in_slices_are_those_of_the_trained_weights(bases: Seen, scenario):
    # Queries, keys, values, output and two norms of the second layer; see `FROZEN` and `SIZES`.
    trained = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 32
    for result in results(bases, scenario):
        found = result["files"]["without"]
        assert {key.partition("layers.1.")[2].partition(".")[0] for key in found} == {
            *("self_attn", "input_layernorm", "post_attention_layernorm")
        }
        assert sum(num_bytes for num_bytes, _ in found.values()) == 12 * trained
        base = "".join(set(result["files"]["with"]) - set(found))
        for name in ("embed_tokens", "layers.0.mlp.up_proj.weight@0of2", "q_proj.weight@1of2"):
            assert name in base, "as releases before wrote it"


@pytest.mark.parametrize("scenario", PLACES)
@pytest.mark.parametrize("kind", ["without", "with"])
def test_a_resumed_run_equals_the_straight_one(bases: Seen, scenario, kind):
    for result in results(bases, scenario):
        assert result[kind]["next"] == result["straight"]
        for name, value in result["weights"].items():
            assert torch.equal(result[kind]["weights"][name], value), name
        # The base of a former release's checkpoint is the model's: it is left out from now on.
        assert result[f"after_{kind}"].keys() == result["files"]["without"].keys()


@pytest.mark.parametrize("scenario", PLACES)
def test_another_base_is_refused(bases: Seen, scenario):
    for result in results(bases, scenario):
        message = result["refused"]
        assert "belongs to another base model: it has no frozen weights" in message
        assert "model.embed_tokens.weight, " in message
        assert " more of this run are others than those that it was trained with" in message
        assert "resume with its model, or start a new run from the saved model" in message


@pytest.mark.parametrize("scenario", PLACES)
def test_another_base_that_was_loaded_stays_in_checkpoints(bases: Seen, scenario):
    for result in results(bases, scenario):
        assert result["carried"].keys() == result["files"]["with"].keys()
        found = result["resumed_carried"]
        assert found["next"] == result["straight"]
        for name, value in result["weights"].items():
            assert torch.equal(found["weights"][name], value), name
