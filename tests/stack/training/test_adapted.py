"""Training a part of a model: frozen weights and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.stack.training.adapted_scenarios import LORA
from tests.stack.training.conftest import Seen
from tests.stack.training.samples import LENGTHS, TEMPERATURE, load_samples
from tests.stack.training.test_equality import assert_same_metrics, relative_difference

pytestmark = [pytest.mark.stack, pytest.mark.slow]

STAGES = (0, 1, 2, 3)
# World size and ZeRO stage.
PLACES = ((1, 0), *((2, stage) for stage in STAGES))


def ranks_of(seen: Seen, scenario: str, world_size: int) -> list[dict[str, Any]]:
    return [seen.one[scenario]] if world_size == 1 else [rank[scenario] for rank in seen.two]


def is_frozen(name: str) -> bool:
    """The weights that `FROZEN` names in the tiny model, whose head is tied to the embedding."""
    frozen = ("model.embed_tokens.", "model.layers.0.", "model.norm.", "model.layers.1.mlp.")
    return name.startswith(frozen)


def logprobs_of(model: Any, data: dict[str, Tensor]) -> Tensor:
    """Log-probabilities at the temperature of the samples, 0 off the mask."""
    values, start = [], 0
    for length in LENGTHS:
        ids = data["token_ids"][start : start + length]
        mask = data["loss_mask"][start : start + length]
        start += length
        with torch.no_grad():
            rows = (model(input_ids=ids[None]).logits[0].float() / TEMPERATURE).log_softmax(-1)
        of_tokens = torch.cat([torch.zeros(1), rows[:-1].gather(1, ids[1:, None])[:, 0]])
        values.append(torch.where(mask, of_tokens, 0.0))
    return torch.cat(values)


class TestFrozenWeights:
    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_frozen_weights_stay_and_the_others_change(self, partial: Seen, world_size, stage):
        start = AutoModelForCausalLM.from_pretrained(partial.folder / "policy").state_dict()
        for result in ranks_of(partial, f"frozen_zero_{stage}", world_size):
            kinds = set()
            for name, after in result["after"].items():
                kinds.add(is_frozen(name))
                assert torch.equal(result["before"][name], start[name]), name
                assert torch.equal(after, start[name]) == is_frozen(name), name
                assert torch.equal(result["average"][name], start[name]) == is_frozen(name), name
            assert kinds == {True, False}

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_frozen_weights_have_no_gradient_or_state(self, partial: Seen, world_size, stage):
        results = ranks_of(partial, f"frozen_zero_{stage}", world_size)
        for result in results:
            names = [name.removeprefix("model.") for name in result["gradient"]]
            assert not any(is_frozen(name) for name in names)
        before = results[0]["before"]
        trained = sum(value.numel() for name, value in before.items() if not is_frozen(name))
        copies = world_size if stage == 0 else 1
        states = sum(result["num_states"] for result in results)
        # Two moments of Adam. Padding of the shards is far smaller than the frozen weights.
        assert copies * 2 * trained <= states < copies * 2 * trained * 1.1

    @pytest.mark.parametrize("stage", STAGES)
    def test_two_ranks_are_one(self, partial: Seen, stage):
        one = partial.one["frozen_zero_0"]
        for result in ranks_of(partial, f"frozen_zero_{stage}", 2):
            assert relative_difference(result["gradient"], one["gradient"]) < 1e-6
            for mine, other in zip(result["metrics"], one["metrics"], strict=True):
                assert_same_metrics(mine, other, rel=5e-6)


class TestAdapters:
    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_the_model_starts_unchanged_and_its_merged_layers_change(
        self, partial: Seen, world_size, stage
    ):
        start = AutoModelForCausalLM.from_pretrained(partial.folder / "policy").state_dict()
        for result in ranks_of(partial, f"adapted_zero_{stage}", world_size):
            assert result["after"].keys() == start.keys() - {"lm_head.weight"}
            shapes = {name: tuple(value.shape) for name, value in result["after"].items()}
            assert result["shapes"] == shapes
            for name, after in result["after"].items():
                assert torch.equal(result["before"][name], start[name]), name
                has_adapter = name.endswith("_proj.weight")
                assert torch.equal(after, start[name]) != has_adapter, name

    @pytest.mark.parametrize("stage", STAGES)
    def test_two_ranks_are_one(self, partial: Seen, stage):
        one = partial.one["adapted_zero_0"]
        for result in ranks_of(partial, f"adapted_zero_{stage}", 2):
            for number in range(3):
                mine, other = result["gradients"][number], one["gradients"][number]
                assert relative_difference(mine, other) < (1e-6, 1e-5, 1e-5)[number]
            for mine, other in zip(result["metrics"], one["metrics"], strict=True):
                assert_same_metrics(mine, other, rel=5e-6)

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_only_adapters_have_a_gradient_and_a_state(self, partial: Seen, world_size, stage):
        results = ranks_of(partial, f"adapted_zero_{stage}", world_size)
        size = sum(weight.numel() for weight in results[0]["adapter"].values())
        states = sum(result["num_states"] for result in results)
        copies = world_size if stage == 0 else 1
        assert copies * 2 * size <= states < copies * 2 * size * 1.1
        for result in results:
            assert all(".lora_" in name for name in result["gradients"][0])
            assert len(result["gradients"][0]) == len(result["adapter"]) == 2 * 2 * 7

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_a_resumed_run_equals_the_straight_one(self, partial: Seen, world_size, stage):
        for result in ranks_of(partial, f"adapted_zero_{stage}", world_size):
            assert result["resumed"] == result["metrics"][1:]
            for name, value in result["after"].items():
                assert torch.equal(result["resumed_weights"][name], value), name
            # The checkpoint has no value of the base: its size is that of what is trained.
            assert result["pieces"]
            assert all(".lora_" in key for key in result["pieces"])

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_the_merged_model_scores_like_the_trained_one(self, partial: Seen, world_size, stage):
        folder = partial.folder / f"adapted_zero_{stage}_{world_size}" / "model"
        result = ranks_of(partial, f"adapted_zero_{stage}", world_size)[0]
        model = AutoModelForCausalLM.from_pretrained(folder)
        found = logprobs_of(model, load_samples(partial.folder))
        torch.testing.assert_close(found, result["scores"][0], rtol=0, atol=1e-5)
        for name, value in result["after"].items():
            assert torch.equal(model.state_dict()[name], value), name

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_the_adapter_loads_in_peft(self, partial: Seen, world_size, stage):
        folder = partial.folder / f"adapted_zero_{stage}_{world_size}" / "model" / "adapter"
        result = ranks_of(partial, f"adapted_zero_{stage}", world_size)[0]
        base = AutoModelForCausalLM.from_pretrained(partial.folder / "policy")
        model = PeftModel.from_pretrained(base, str(folder))
        data = load_samples(partial.folder)
        found = logprobs_of(model, data)
        torch.testing.assert_close(found, result["scores"][0], rtol=0, atol=1e-5)
        with model.disable_adapter():
            assert float((logprobs_of(model, data) - found).abs().max()) > 1e-2
        config = model.peft_config["default"]
        assert (config.r, config.lora_alpha) == (LORA.r, LORA.alpha)
        assert config.base_model_name_or_path == str(partial.folder / "policy")

    @pytest.mark.parametrize(("world_size", "stage"), PLACES)
    def test_the_reference_is_the_policy_without_its_adapter(
        self, partial: Seen, world_size, stage
    ):
        """It scores like a separate reference, even when the policy has changed."""
        expected = ranks_of(partial, "reference_of_start", world_size)[0]["values"][0]
        result = ranks_of(partial, f"adapted_zero_{stage}", world_size)[0]
        assert len(result["references"]) == 4
        for found in result["references"]:
            torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-6)
        assert float((result["scores"][0] - expected).abs().max()) > 1e-2

    def test_sent_adapter_weights_give_the_merged_weights(self, partial: Seen):
        result = partial.two[0]["adapted_zero_3"]
        adapter = {
            name.removeprefix("base_model.model."): w for name, w in result["adapter"].items()
        }
        for name in [name for name in adapter if ".lora_A." in name]:
            layer = name.removesuffix(".lora_A.weight")
            delta = adapter[f"{layer}.lora_B.weight"] @ adapter[name]
            whole = result["before"][f"{layer}.weight"] + delta
            torch.testing.assert_close(whole, result["after"][f"{layer}.weight"])

    def test_bfloat16(self, partial: Seen):
        result = partial.one["adapted_bfloat16"]
        assert {value.dtype for value in result["after"].values()} == {torch.bfloat16}
        assert result["resumed"] == result["metrics"][1:]
        moved = [n for n, v in result["after"].items() if not torch.equal(v, result["before"][n])]
        assert len(moved) == 2 * 7


class TestScalarHeads:
    @pytest.mark.parametrize("stage", [0, 3])
    def test_a_critic_trains_adapter_and_head(self, partial: Seen, stage):
        one = partial.one["adapted_values_zero_0"]
        trained = one["gradient"]
        heads = [name for name in trained if ".lora_" not in name]
        assert heads == ["model.head.weight"]
        assert len(trained) == 1 + 2 * 2 * 7
        assert not torch.equal(one["before"], one["after"])
        for result in ranks_of(partial, f"adapted_values_zero_{stage}", 2):
            assert relative_difference(result["gradient"], trained) < 1e-6
            for mine, other in zip(result["metrics"], one["metrics"], strict=True):
                assert_same_metrics(mine, other, rel=5e-6)

    @pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 3)])
    def test_a_reward_model_is_written_merged_and_as_an_adapter(
        self, partial: Seen, world_size, stage
    ):
        folder = partial.folder / f"adapted_reward_model_{world_size}_zero_{stage}"
        result = ranks_of(partial, f"adapted_reward_model_zero_{stage}", world_size)[0]
        assert result["after"]["eval/loss"] < result["before"]["eval/loss"]
        tokens = torch.tensor([[5, 9, 33, 47]])
        merged = AutoModelForSequenceClassification.from_pretrained(folder)
        start = load_start(partial.folder / "policy", merged.config.pad_token_id)
        with torch.no_grad():
            expected = float(merged(input_ids=tokens).logits)
            with_adapter = PeftModel.from_pretrained(start, str(folder / "adapter"))
            assert float(with_adapter(input_ids=tokens).logits) == pytest.approx(expected, abs=1e-5)
        assert abs(expected) > 1e-3, "the head has learnt something"


def load_start(folder: Path, padding: int | None) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = padding
    return model.eval()
