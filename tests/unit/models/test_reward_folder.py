"""A scalar head as a sequence classifier, and what its scores look like."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    PreTrainedModel,
)

from rlhf_ray.algorithms.rewards.task_rewards import reward_moments
from rlhf_ray.config.errors import RequestError
from rlhf_ray.models.loading import ScalarHeadModel
from rlhf_ray.models.reward_folder import classifier_names, new_classifier, padding_token
from rlhf_ray.models.reward_normalization import (
    FILE_NAME,
    RewardNormalization,
    normalization_of,
    read_normalization,
    write_normalization,
)


def tokenizer(**tokens: int | None) -> Any:
    """A stand-in with these ids, as `pad`, `eos`, `unk` and `bos`."""
    names = ("pad", "eos", "unk", "bos")
    return SimpleNamespace(**{f"{name}_token_id": tokens.get(name) for name in names})


def scalar(backbone: PreTrainedModel, *, bias: bool = False) -> ScalarHeadModel:
    return ScalarHeadModel(backbone, nn.Linear(backbone.config.hidden_size, 1, bias=bias))


def llama() -> PreTrainedModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


def gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=16))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_classifier_says_the_same(make: Any, tmp_path: Path) -> None:
    model = scalar(make().eval())
    classifier = new_classifier(model, model.state_dict(), tokenizer(pad=1, eos=2))
    names = classifier_names(classifier)
    state = {names(name): tensor for name, tensor in model.state_dict().items()}
    classifier.save_pretrained(tmp_path, state_dict=state)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert (loaded.config.num_labels, loaded.config.pad_token_id) == (1, 1)
    with torch.no_grad():
        tokens = torch.tensor([[5, 6, 7], [8, 9, 1]])
        expected = model(tokens)
        found = loaded(input_ids=tokens).logits[:, 0]
    assert found.tolist() == pytest.approx([float(expected[0, 2]), float(expected[1, 1])], abs=1e-6)
    assert model.backbone.config.pad_token_id != 1, "the model's own configuration is as it was"


def test_models_that_cannot_be_classifiers_are_refused() -> None:
    mamba = MambaModel(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(RequestError, match="no sequence classifier for MambaConfig"):
        new_classifier(scalar(mamba), (), tokenizer(pad=1, eos=2))
    biased = scalar(llama(), bias=True)
    with pytest.raises(RequestError, match=r"other weights than.*score\.bias"):
        new_classifier(biased, biased.state_dict(), tokenizer(pad=1, eos=2))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"pad": 1, "eos": 2, "bos": 3}, 1),
        ({"pad": 0, "eos": 2}, 0),
        ({"pad": 2, "eos": 2, "bos": 3}, 3),
        ({"pad": 2, "eos": 2, "unk": 4, "bos": 3}, 4),
        ({"pad": 2, "eos": 2, "unk": 2, "bos": 2}, None),
    ],
)
def test_no_answer_ends_with_the_padding_token(
    tokens: dict[str, int], expected: int | None
) -> None:
    assert padding_token(tokenizer(**tokens)) == expected


def test_normalization(tmp_path: Path) -> None:
    found = normalization_of(reward_moments([1.0, 3.0, 5.0, 7.0]))
    assert found == RewardNormalization(mean=4.0, standard_deviation=5.0**0.5, num_answers=4)
    assert found.normalized(4.0 + 5.0**0.5) == pytest.approx(1.0)
    assert normalization_of(reward_moments([3.0, 3.0])).normalized(4.0) == 1.0
    assert normalization_of(None).normalized(4.0) == 4.0
    write_normalization(tmp_path, found)
    assert read_normalization(tmp_path) == found


@pytest.mark.parametrize("score", [0.1, 7.7, 1e4 + 0.1])
def test_equal_scores_are_only_centred(score: float) -> None:
    """Rounding of their sums is no deviation."""
    found = normalization_of(reward_moments([score] * 1000))
    assert found.standard_deviation == 0.0
    assert found.normalized(score + 1e-6) == pytest.approx(1e-6)


def test_the_deviation_around_a_large_mean() -> None:
    found = normalization_of(reward_moments([1e6 - 1.0, 1e6 + 1.0] * 500))
    assert (found.mean, found.standard_deviation) == (1e6, 1.0)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("standard_deviation", -1, "standard_deviation is -1; it must be 0 or a positive"),
        ("standard_deviation", 1e-300, "standard_deviation is 1e-300; it must be"),
        ("standard_deviation", math.inf, "standard_deviation is inf, not a finite"),
        ("mean", math.nan, "mean is nan, not a finite"),
        ("mean", 1e39, "mean is 1e\\+39, not a finite number of float32"),
        ("mean", "0", "mean is '0', not a number"),
        ("mean", None, "mean is None, not a number"),
        ("mean", True, "mean is True, not a number"),
        ("num_answers", 1.5, "num_answers is 1.5, not a whole number"),
    ],
)
def test_moments_that_change_scores_silently_are_refused(
    tmp_path: Path, field: str, value: object, words: str
) -> None:
    good = {"mean": 0.0, "standard_deviation": 1.0, "num_answers": 5}
    (tmp_path / FILE_NAME).write_text(json.dumps({**good, field: value}))
    with pytest.raises(RequestError, match=words):
        read_normalization(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[" * 100_000, "[]", json.dumps({"mean": 1.0})])
def test_a_file_that_is_not_there_or_wrong(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(RequestError, match="stage=reward_model writes it next to the model"):
        read_normalization(tmp_path)
