"""What a run learns of its reward model before any worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_ray.cluster.roles.reward_model import resolve_reward_model
from rlhf_ray.cluster.roles.run_roles import scoring_context
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig
from rlhf_ray.config.load import read_config
from rlhf_ray.data.prompts.load import load_prompts
from rlhf_ray.models.reward_normalization import RewardNormalization
from rlhf_ray.models.tiny.tokenizer import train_tokenizer
from rlhf_ray.testing.tiny import tiny_random, tiny_reward_model

MOMENTS = RewardNormalization(mean=0.25, standard_deviation=2.0, num_answers=7)


class Resolve:
    """`resolve_reward_model` over the folders of a policy and a reward model."""

    def __init__(self, folder: Path) -> None:
        self.policy = tiny_random(folder / "policy")
        self.own = tiny_reward_model(folder / "own", normalization=MOMENTS)
        self.bare = tiny_reward_model(folder / "bare")
        self.foreign = tiny_reward_model(folder / "foreign", vocab_size=280, normalization=MOMENTS)
        self.rows = folder / "rows.jsonl"
        chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And you?"}]
        self.rows.write_text("\n".join(json.dumps({"prompt": p}) for p in ("What is it?", chat)))
        self.reports: list[str] = []

    def __call__(self, path: Path | None, **keys: Any) -> ModelRewardConfig:
        config = read_config([f"model.path={self.policy}"])
        config.reward.model = ModelRewardConfig(path=path and str(path), **keys)
        tokenizer = AutoTokenizer.from_pretrained(self.policy)
        prompts = load_prompts(DataConfig(path=str(self.rows)), tokenizer, seed=0)
        context = scoring_context(config)
        return resolve_reward_model(context, tokenizer, prompts, self.reports.append).model


@pytest.fixture(scope="module")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Resolve:
    return Resolve(tmp_path_factory.mktemp("models"))


def test_without_one_nothing_changes(resolve):
    assert resolve(None) == ModelRewardConfig()


def test_moments_come_from_the_folder(resolve):
    found = resolve(resolve.own)
    assert (found.mean, found.standard_deviation) == (0.25, 2.0)
    given = resolve(resolve.own, mean=1.0, standard_deviation=3.0)
    assert (given.mean, given.standard_deviation) == (1.0, 3.0)


def test_a_model_whose_unit_nobody_knows_is_refused(resolve):
    with pytest.raises(RequestError, match=r"reward\.model\.mean and.*normalize=false"):
        resolve(resolve.bare)
    assert resolve(resolve.bare, normalize=False).mean is None
    assert resolve(resolve.bare, mean=1.0, standard_deviation=3.0).mean == 1.0


def test_foreign_tokens_are_refused_by_what_differs(resolve):
    with pytest.raises(RequestError) as caught:
        resolve(resolve.foreign)
    message = str(caught.value)
    words = ["vocabularies of 320 and 280 tokens", str(resolve.foreign), str(resolve.policy)]
    words += ["reward.model.foreign_tokens=text", "reward.model.tokenizer_path"]
    assert [word for word in words if word not in message] == []


def test_foreign_tokens_may_become_text(resolve):
    resolve.reports.clear()
    assert resolve(resolve.foreign, foreign_tokens="text").foreign_tokens == "text"
    (report,) = resolve.reports
    assert "vocabularies of 320 and 280 tokens" in report


def test_tokens_that_are_the_policys_are_taken_as_they_are(resolve):
    resolve.reports.clear()
    assert resolve(resolve.own, foreign_tokens="text").foreign_tokens == "refuse"
    assert resolve.reports == []


def test_a_tokenizer_of_its_own_may_be_named(resolve, tmp_path):
    trained = tiny_reward_model(tmp_path / "m", normalization=MOMENTS)
    train_tokenizer(("other",), vocab_size=262).save_pretrained(trained)
    with pytest.raises(RequestError, match="is not the policy's"):
        resolve(trained)
    assert resolve(trained, tokenizer_path=str(resolve.policy)).foreign_tokens == "refuse"


def test_prompts_that_cannot_be_rendered_are_refused_before_the_start(resolve, tmp_path):
    plain = tiny_reward_model(tmp_path / "plain", normalization=MOMENTS)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    tokenizer.chat_template = None
    (plain / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(plain)
    with pytest.raises(RequestError, match=r"prompt r1 cannot be rendered.*no chat template"):
        resolve(plain, foreign_tokens="text")


def test_what_is_no_reward_model_is_refused(resolve):
    with pytest.raises(RequestError, match="gives no score"):
        resolve(resolve.policy)
