"""A judge that could not do its work is refused before any worker starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlhf_ray.cluster.roles.judge import check_judge
from rlhf_ray.cluster.roles.run_roles import run_roles, scoring_context
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.load import load_config
from rlhf_ray.config.run import Config
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.testing.tiny import tiny_random
from tests.unit.rewards.conftest import build_group


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_random(tmp_path_factory.mktemp("judge") / "tiny")


PROMPTS = PromptSet(
    prompts=(build_group("x").prompt,), skipped=(), left_out_columns=(), fingerprint=""
)


def config_with(*overrides: str) -> Config:
    return load_config(["recipe=demo", "reward.judge.max_prompt_tokens=700", *overrides])


def check(config: Config, prompts: PromptSet = PROMPTS) -> list[str]:
    lines: list[str] = []
    check_judge(scoring_context(config), prompts, lines.append)
    return lines


def test_nothing_to_check():
    assert check(config_with()) == []


@pytest.mark.parametrize("is_policy", [False, True])
def test_a_good_judge(model, is_policy):
    judge = "policy" if is_policy else str(model)
    config = config_with(f"reward.judge.model={judge}", f"model.path={model}")
    (line,) = check(config)
    assert f"the judge is {judge}; a question to it has" in line


def test_no_model_there():
    with pytest.raises(RequestError, match=r"reward\.judge\.model is '/no/where'"):
        check(config_with("reward.judge.model=/no/where"))


def test_a_context_that_is_too_short(model):
    config = config_with(f"reward.judge.model={model}", "reward.judge.max_prompt_tokens=900")
    with pytest.raises(RequestError, match="reads at most 1024 tokens; lower them"):
        check(config)


def test_a_rubric_that_is_too_long(model):
    config = config_with(f"reward.judge.model={model}", "reward.judge.max_prompt_tokens=100")
    with pytest.raises(RequestError, match=r"prompt e0-r1: the question to the judge has \d+"):
        check(config)


def test_a_rubric_with_an_answer_that_a_prompt_lacks(model):
    config = config_with(f"reward.judge.model={model}", "reward.judge.rubric='{response}{answer}'")
    prompt = replace(PROMPTS.prompts[0], answer=None)
    with pytest.raises(RequestError, match="the prompt has no reference answer"):
        check(config, replace(PROMPTS, prompts=(prompt,)))


def settings_of(config: Config, role: str) -> Any:
    return run_roles(config).named(role).settings(0)


class TestSettings:
    def test_own_engines(self, model):
        judge = [f"reward.judge.model={model}", "reward.judge.num_engines=2"]
        config = config_with(*judge, "generation.extra_engine_args={seed_x: 1}")
        settings = settings_of(config, "judge")
        assert settings.model.path == str(model)
        assert settings.max_sequence_tokens == 700 + 256
        assert settings.generation.max_num_seqs == 64
        assert settings.generation.extra_engine_args == {}
        assert settings.request_timeout_s == 120
        assert settings_of(config, "generator").max_sequence_tokens == config.max_sequence_tokens
        assert settings.engine_index == config.generation.num_engines

    def test_the_engines_of_the_run_have_room_for_questions(self):
        config = config_with("reward.judge.model=policy")
        assert settings_of(config, "generator").max_sequence_tokens == 700 + 256
        assert "judge" not in [role.name for role in run_roles(config).roles]
        assert settings_of(config, "judge_scorer").source.path == config.model.path

    def test_no_judge(self):
        names = [role.name for role in run_roles(config_with()).roles]
        assert "judge" not in names
        assert "judge_scorer" not in names
