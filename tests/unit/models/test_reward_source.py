"""Source, tokenizer and score normalization of a reward model."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.models.reward_normalization import (
    FILE_NAME,
    RewardNormalization,
    find_normalization,
    write_normalization,
)
from rlhf_ray.models.reward_source import check_reward_model, reward_model_source
from rlhf_ray.models.tiny.tokenizer import train_tokenizer
from rlhf_ray.models.tokenizer_match import tokenizer_differences
from rlhf_ray.testing.tiny import tiny_random, tiny_reward_model

TEXTS = ("What is the sum of these numbers?", "The answer is not known to them.")


def tokenizer(**settings):
    return train_tokenizer(TEXTS, **{"vocab_size": 320, **settings})


def test_the_source_is_the_reward_models_own():
    policy = ModelConfig(
        path="policy", tokenizer_path="words", chat_template="file", attention="eager"
    )
    source = reward_model_source(ModelRewardConfig(path="scores"), policy)
    assert source == ModelConfig(path="scores", attention="eager")
    source = reward_model_source(ModelRewardConfig(path="scores", tokenizer_path="t"), policy)
    assert source.tokenizer_path == "t"


def test_a_reward_model_is_a_classifier_with_one_label(tmp_path: Path):
    check_reward_model(ModelConfig(path=str(tiny_reward_model(tmp_path / "good"))))
    policy = tiny_random(tmp_path / "policy")
    with pytest.raises(RequestError, match=r"reward\.model\.path.*LlamaForCausalLM.*no score"):
        check_reward_model(ModelConfig(path=str(policy)))
    config = LlamaConfig.from_pretrained(policy, num_labels=5)
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "several")
    with pytest.raises(RequestError, match="a classifier with 5 labels"):
        check_reward_model(ModelConfig(path=str(tmp_path / "several")))
    with pytest.raises(RequestError, match=r"reward\.model\.path.*without config\.json"):
        check_reward_model(ModelConfig(path=str(tmp_path)))


def test_moments_of_a_folder(tmp_path: Path):
    assert find_normalization(str(tmp_path)) is None
    moments = RewardNormalization(mean=1.0, standard_deviation=2.0, num_answers=3)
    write_normalization(tmp_path, moments)
    assert find_normalization(str(tmp_path)) == moments
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(RequestError, match="cannot be read"):
        find_normalization(str(tmp_path))


def test_padding_tokens_are_not_compared():
    other = tokenizer()
    other.pad_token = other.eos_token
    assert tokenizer_differences(tokenizer(), other) == []


def _with_bos(other):
    other.bos_token = "<user>"


def _with_eos(other):
    other.eos_token = "<assistant>"


def _without_template(other):
    other.chat_template = None


def _with_template(other):
    other.chat_template = "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_with_bos, ["beginning-of-text token None and '<user>'"]),
        (_with_eos, ["end-of-text token '<eos>' and '<assistant>'"]),
        (_without_template, ["chat templates: one of", "and none"]),
        (_with_template, ["chat templates: one of", "and another one, "]),
    ],
)
def test_differences_are_named(change, words):
    other = tokenizer()
    change(other)
    (difference,) = tokenizer_differences(tokenizer(), other)
    assert [word for word in words if word not in difference] == []


def test_other_vocabularies():
    one, other = tokenizer(vocab_size=270), tokenizer(vocab_size=265)
    vocabularies, _ = tokenizer_differences(one, other)
    assert vocabularies.startswith(
        "vocabularies of 270 and 265 tokens, 5 of which differ in their id"
    )
    assert "not there" in vocabularies


def test_the_same_vocabulary_with_other_behaviour():
    """Tokens with capitals, which encoding in lower case never gives."""
    one, other = tokenizer(vocab_size=260), tokenizer(vocab_size=260, lowercase=True)
    assert one.get_vocab() == other.get_vocab()
    (difference,) = tokenizer_differences(one, other)
    assert 'token ids of the text "What is 12345+67?' in difference
