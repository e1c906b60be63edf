"""Checkpoints, saved models and scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.stack.training.conftest import Seen
from tests.stack.training.samples import LENGTHS, TEMPERATURE, load_samples

pytestmark = pytest.mark.stack

RESUMED = [*(f"resume_zero_{stage}" for stage in (0, 1, 2, 3)), "resume_bfloat16_zero_0"]


@pytest.mark.parametrize("scenario", ["one", *RESUMED])
def test_a_resumed_run_equals_the_straight_one(seen: Seen, scenario):
    ranks = [seen.one["resume_zero_0"]] if scenario == "one" else [r[scenario] for r in seen.two]
    for result in ranks:
        assert result["resumed"] == result["straight"]
        assert result["straight"][0] != result["straight"][1]
        assert torch.equal(result["drawn_again"], result["drawn"])
        for name, value in result["straight_weights"].items():
            assert torch.equal(result["resumed_weights"][name], value), name


def test_a_resumed_critic_equals_the_straight_one(seen: Seen):
    for rank in seen.two:
        result = rank["critic_resume_zero_2"]
        assert result["resumed"] == result["straight"]
        assert torch.equal(result["resumed_values"], result["straight_values"])


def test_a_checkpoint_that_does_not_fit_is_refused(seen: Seen):
    errors = seen.one["refused_checkpoints"]
    assert "was written with dtype=float32, and this run has dtype=bfloat16" in errors["dtype"]
    assert "role.json is missing" in errors["missing"]
    assert "state_rank_00000.json is missing" in errors["no_index"]
    assert "trains other weights: model.model.norm.weight here" in errors["trains_more"]
    assert "resume with its model, training.freeze and training.lora" in errors["trains_more"]


@pytest.mark.parametrize("name", ["zero_0", "zero_3"])
def test_a_saved_model_loads_in_transformers(seen: Seen, name):
    folder = seen.folder / f"saved_{name}"
    rank = seen.one if name == "zero_0" else seen.two[0]
    scenario = "saved_model" if name == "zero_0" else "saved_model_zero_3"
    weights = rank[scenario]["weights"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = model.state_dict()
    # The tied head is published and saved once, under the name of the embedding.
    assert loaded.keys() - weights.keys() == {"lm_head.weight"}
    assert torch.equal(loaded["lm_head.weight"], loaded["model.embed_tokens.weight"])
    start = AutoModelForCausalLM.from_pretrained(seen.folder / "policy").state_dict()
    for key, value in weights.items():
        assert torch.equal(loaded[key], value), key
        assert not torch.equal(start[key], value), key
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer("Where is it?")["input_ids"]) == "Where is it?"
    assert tokenizer.chat_template


@pytest.mark.parametrize("name", ["files_one", "files_2", "files_3"])
@pytest.mark.parametrize("what", ["weights", "average"])
def test_a_model_in_several_files_loads_in_transformers(seen: Seen, name, what):
    is_one = name == "files_one"
    scenario = "saved_in_files" if is_one else f"saved_in_files_zero_{name[-1]}"
    result = (seen.one if is_one else seen.two[0])[scenario]
    folder = seen.folder / (f"saved_{name}" + ("_ema" if what == "average" else ""))
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    assert loaded.keys() - result[what].keys() == {"lm_head.weight"}
    for key, value in result[what].items():
        assert torch.equal(loaded[key], value), key
        assert loaded[key].dtype == value.dtype
    assert AutoTokenizer.from_pretrained(folder).chat_template


def plain_scores(folder: Path, model: str) -> list[Tensor]:
    """Ground truth, sample by sample: log-probabilities on the mask, 0 elsewhere."""
    policy = AutoModelForCausalLM.from_pretrained(folder / model, dtype=torch.float64)
    data = load_samples(folder)
    result, start = [], 0
    for length in LENGTHS:
        ids = data["token_ids"][start : start + length]
        mask = data["loss_mask"][start : start + length]
        start += length
        with torch.no_grad():
            logprobs = (policy(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        chosen = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
        result.append(torch.where(mask, torch.cat([chosen.new_zeros(1), chosen]), 0.0))
    return result


def assert_scores(found: dict[str, Tensor], names: list[str], truth: list[Tensor]) -> None:
    assert list(found) == names
    for name, values in found.items():
        first, end = (int(part) for part in name.split("-"))
        expected = torch.cat(truth[first:end]).float()
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "scenario", ["scores_zero_0", "scores_zero_3", "reference_zero_0", "reference_zero_3"]
)
def test_scores_with_uneven_groups(seen: Seen, scenario):
    truth = plain_scores(seen.folder, "policy")
    first, second = (rank[scenario] for rank in seen.two)
    assert_scores(first["some"], ["0-1", "1-3", "3-5"], truth)
    assert_scores(second["some"], ["4-5"], truth)
    assert_scores(first["none"], ["0-1", "1-3", "3-5"], truth)
    assert second["none"] == {}


def test_one_rank_scores(seen: Seen):
    truth = plain_scores(seen.folder, "policy")
    assert_scores(seen.one["scores"]["some"], ["0-1", "1-3", "3-5"], truth)


def test_a_separate_reference(seen: Seen):
    names = ["0-1", "1-3", "3-5"]
    other = plain_scores(seen.folder, "other_policy")
    assert_scores(seen.one["other_reference"]["some"], names, other)
    with pytest.raises(AssertionError):
        assert_scores(
            seen.one["other_reference"]["some"], names, plain_scores(seen.folder, "policy")
        )


@pytest.mark.parametrize("scenario", ["scores_zero_0", "scores_zero_3"])
def test_sequences_are_scored_at_temperature_one(seen: Seen, scenario):
    policy = AutoModelForCausalLM.from_pretrained(seen.folder / "policy", dtype=torch.float64)
    sequences = [(1, 2, 3, 4), (9, 8), (5, 5, 5, 5, 5)]
    for rank in seen.two:
        for tokens, found in zip(sequences, rank[scenario]["sequences"], strict=True):
            with torch.no_grad():
                logprobs = policy(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            expected = [float(logprobs[i, token]) for i, token in enumerate(tokens[1:])]
            assert found == pytest.approx(expected, rel=1e-5)


def test_scoring_between_updates_changes_nothing(seen: Seen):
    found, expected = seen.two[0]["scores_between_updates_zero_3"], seen.two[0]["two_steps_zero_3"]
    assert found["metrics"] == expected["metrics"]
    for name, value in expected["weights"].items():
        assert torch.equal(found["weights"][name], value), name
    before, between, after = found["scores"]
    truth = torch.cat(plain_scores(seen.folder, "policy")).float()
    torch.testing.assert_close(before, truth, rtol=1e-5, atol=1e-6)
    assert not torch.equal(before, between)
    assert not torch.equal(between, after)


def test_the_critic_values_states(seen: Seen):
    """A value is the output of the head one token earlier."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        seen.folder / "reward_model", dtype=torch.float64
    )
    data, expected, start = load_samples(seen.folder), [], 0
    for length in LENGTHS:
        ids = data["token_ids"][start : start + length]
        mask = data["loss_mask"][start : start + length]
        start += length
        with torch.no_grad():
            hidden = model.model(input_ids=ids[None]).last_hidden_state[0]
            values = model.score(hidden)[:, 0]
        shifted = torch.cat([values.new_zeros(1), values[:-1]])
        expected.append(torch.where(mask, shifted, 0.0))
    found = seen.one["value_gradient"]["scores"]
    torch.testing.assert_close(found, torch.cat(expected).float(), rtol=1e-5, atol=1e-6)


def test_a_critic_without_a_path_starts_at_zero_and_learns(seen: Seen):
    result = seen.one["default_critic"]
    assert not result["before"].any()
    assert result["after"].any()
