"""The reward model of a run: checked, compared with the policy, its scores' unit found."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from transformers import AutoConfig

from rlhf_ray.cluster.roles.judge import judge_source
from rlhf_ray.config.bearer_token import service_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import ModelRewardConfig, RewardConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.examples.answered import encode_answers
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.rows import BadCell, DataError
from rlhf_ray.models.context import context_of
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.location import check_location, explained
from rlhf_ray.models.reward_normalization import FILE_NAME, find_normalization
from rlhf_ray.models.reward_source import check_reward_model, reward_model_source
from rlhf_ray.models.tokenizer_match import tokenizer_differences
from rlhf_ray.rewards.http.client import CallFailed
from rlhf_ray.rewards.http.scorer import ask_health
from rlhf_ray.rewards.rubric import NoScore, Rubric

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompts rendered on trial, with the reward model's template or the judge's rubric.
_NUM_TRIED = 64


def with_reward_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    report: Callable[[str], None],
) -> Config:
    """The configuration with a `reward.model` that leaves a worker nothing to decide.

    It has mean and standard deviation where scores are normalised, and `foreign_tokens` is "text"
    only where texts are to be tokenised anew.

    Args:
        tokenizer: the policy's.
        report: takes lines for people.

    Raises:
        RequestError: the model cannot score, nothing is known of its scores, or its tokens are
            not the policy's.
    """
    if not config.needs_reward_model:
        return config
    source = reward_model_source(config.reward.model, config.model)
    check_reward_model(source)
    model = with_moments(config.reward.model)
    own = _tokenizer_of(source)
    differences = tokenizer_differences(tokenizer, own)
    if differences and model.foreign_tokens == "refuse":
        raise RequestError(_foreign(config, differences))
    if differences:
        _try_prompts(own, prompts)
        report(
            "the reward model reads texts, rendered and tokenised anew: it differs from the "
            f"policy in {'; '.join(differences)}"
        )
    foreign_tokens = "text" if differences else "refuse"
    model = dataclasses.replace(model, foreign_tokens=foreign_tokens)
    return dataclasses.replace(config, reward=dataclasses.replace(config.reward, model=model))


def _tokenizer_of(source: ModelConfig) -> PreTrainedTokenizerBase:
    try:
        return load_tokenizer(source)
    except RequestError as error:
        raise RequestError(f"the tokenizer of reward.model: {error}") from error


def with_moments(model: ModelRewardConfig) -> ModelRewardConfig:
    """The settings with mean and standard deviation of the scores, where they are normalised.

    Raises:
        RequestError: nothing is known of them.
    """
    if not model.normalize or model.mean is not None:
        return model
    assert model.path is not None
    found = find_normalization(model.path)
    if found is None:
        raise RequestError(
            f"reward.model.path is {model.path!r}, which has no {FILE_NAME}, so that nobody knows "
            f"where zero is and how long a unit is: give reward.model.mean and "
            f"reward.model.standard_deviation of its scores, or take them as they are with "
            f"reward.model.normalize=false"
        )
    return dataclasses.replace(model, mean=found.mean, standard_deviation=found.standard_deviation)


def _foreign(config: Config, differences: list[str]) -> str:
    model = config.reward.model
    return (
        f"the tokenizer of the reward model ({model.tokenizer_path or model.path}) is not the "
        f"policy's ({config.model.tokenizer_path or config.model.path}), whose token ids would "
        f"mean something else to it: {'; '.join(differences)}. With "
        f"reward.model.foreign_tokens=text it reads the texts, rendered with its own template and "
        f"tokenised anew; where it has been trained with another tokenizer than the one it comes "
        f"with, name that one in reward.model.tokenizer_path"
    )


def _try_prompts(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> None:
    """Refuse a template that cannot render the prompts, before any worker starts."""
    for prompt in prompts.prompts[:_NUM_TRIED]:
        try:
            (row,) = encode_answers(prompt.messages, ["x"], [True], tokenizer)
        except DataError as error:
            row = BadCell(str(error))
        if isinstance(row, BadCell):
            raise RequestError(
                f"reward.model.foreign_tokens=text: prompt {prompt.prompt_id} cannot be rendered "
                f"for the reward model: {row}"
            ) from row


# What a service may say of itself, beside its status.
_SAID = ("model", "fingerprint")


def check_service(reward: RewardConfig, *, report: Callable[[str], None]) -> None:
    """Refuse a service that does not answer; nothing without `reward.url`.

    One that is starting is waited for, as long as `reward.http` allows.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: what it answered, or why it did not.
    """
    if reward.url is None:
        return
    try:
        said = asyncio.run(ask_health(reward.url, reward.http, service_token(reward)))
    except CallFailed as failed:
        hint = (
            "; the token is wrong, or reward.http.token_variable names none"
            if failed.status in (401, 403)
            else "; start the service before the run, or mend reward.url"
        )
        raise RequestError(f"reward.url={reward.url}: {failed}{hint}") from failed
    words = ", ".join(f"{name} {said[name]}" for name in _SAID if name in said)
    report(f"the service at {reward.url} answers{': ' + words if words else ''}")


def check_judge(config: Config, prompts: PromptSet, *, report: Callable[[str], None]) -> None:
    """Refuse a judge that cannot be loaded, or not be asked; nothing where there is none.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: what is wrong with it.
    """
    judge = config.reward.judge
    if judge.model is None:
        return
    source = judge_source(judge, config.model)
    if judge.has_engines:
        check_location(source.path, "reward.judge.model", needs_config=True)
    _check_context(config, source)
    rubric = Rubric(judge, load_tokenizer(source))
    longest = 0
    for prompt in prompts.prompts[:_NUM_TRIED]:
        try:
            longest = max(longest, len(rubric.question(prompt, "")))
        except (NoScore, DataError) as error:
            raise RequestError(f"reward.judge: prompt {prompt.prompt_id}: {error}") from error
    report(
        f"the judge is {judge.model}; a question to it has {longest} tokens and the response, of "
        f"at most {judge.max_prompt_tokens}"
    )


def _check_context(config: Config, source: ModelConfig) -> None:
    judge = config.reward.judge
    with explained(source.path, "reward.judge.model", "a language model"):
        read = AutoConfig.from_pretrained(source.path, trust_remote_code=source.trust_remote_code)
    context = context_of(read)
    if context is not None and judge.max_sequence_tokens > context:
        raise RequestError(
            f"reward.judge.max_prompt_tokens={judge.max_prompt_tokens} and "
            f"reward.judge.max_judgement_tokens={judge.max_judgement_tokens}: {source.path} reads "
            f"at most {context} tokens; lower them"
        )
