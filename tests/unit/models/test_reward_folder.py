"""A scalar head as a sequence classifier, and what its scores look like."""

from __future__ import annotations

import json
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
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0], dtype=torch.float64)
    found = normalization_of(4.0, float(scores.sum()), float(scores.square().sum()))
    assert found == RewardNormalization(mean=4.0, standard_deviation=5.0**0.5, num_answers=4)
    assert found.normalized(4.0 + 5.0**0.5) == pytest.approx(1.0)
    assert normalization_of(2.0, 6.0, 18.0).normalized(4.0) == 1.0
    assert normalization_of(0.0, 0.0, 0.0).normalized(4.0) == 4.0
    write_normalization(tmp_path, found)
    assert read_normalization(tmp_path) == found


@pytest.mark.parametrize("content", [None, "{", json.dumps({"mean": 1.0})])
def test_a_file_that_is_not_there_or_wrong(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(RequestError, match="stage=reward_model writes it next to the model"):
        read_normalization(tmp_path)
