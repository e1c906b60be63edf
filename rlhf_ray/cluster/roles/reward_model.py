"""A trained reward model, as a kind of reward (`reward.model.path`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.calls import Call
from rlhf_ray.cluster.roles.base import MeetingActor, Role, Starting, rank_resources, start_ranks
from rlhf_ray.cluster.roles.rewards import (
    ReplicatedScorer,
    Report,
    ScorerActor,
    ScorerPool,
    Scoring,
    ScoringContext,
    ScoringKind,
    ShardedScorer,
)
from rlhf_ray.config.errors import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.config.groups.model import ModelConfig
    from rlhf_ray.config.groups.reward import ModelRewardConfig, RewardConfig
    from rlhf_ray.data.prompts.load import PromptSet
    from rlhf_ray.records import RolloutGroup

_ROLE = "reward_model"
# Prompts that are rendered on trial with the reward model's template.
_NUM_TRIED = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardModelSettings:
    """Settings of a rank; see `training.roles.reward_scorer.RewardScorer`."""

    reward_model: ModelRewardConfig
    model: ModelConfig
    seed: int
    timeout_s: float


def _scoring(context: ScoringContext) -> Scoring | None:
    reward_model = context.reward.model
    if reward_model.path is None:
        return None
    settings = RewardModelSettings(
        reward_model=reward_model,
        model=context.model,
        seed=context.seed,
        timeout_s=context.collective_timeout_s,
    )
    # At ZeRO stage 3 or in slices all ranks hold one model together; otherwise each holds a whole
    # one. The rules of the configuration allow no pieces of samples then.
    is_sharded = reward_model.is_one_model

    def start(members: Sequence[Member], starting: Starting) -> list[Call]:
        models = [members] if is_sharded else [[member] for member in members]
        return [call for ranks in models for call in start_ranks(ranks, starting)]

    def pool(by_role: Mapping[str, Sequence[Member]]) -> ScorerPool:
        return ShardedScorer(by_role[_ROLE]) if is_sharded else ReplicatedScorer(by_role[_ROLE])

    role = Role(
        resources=rank_resources(_ROLE, reward_model),
        actor_class=RewardModelActor,
        settings=lambda _: settings,
        start=start,
    )
    return Scoring(roles=(role,), pool=pool)


def resolve_reward_model(
    context: ScoringContext,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    report: Report,
) -> RewardConfig:
    """The reward settings with a `reward.model` that leaves a worker nothing to decide.

    It has mean and standard deviation where scores are normalised, and `foreign_tokens` is "text"
    only where texts have to be tokenised again with the reward model's tokenizer.

    Args:
        tokenizer: the policy's.

    Raises:
        RequestError: the model cannot score, the scale of its scores is unknown, or its tokens are
            not the policy's.
    """
    from rlhf_ray.models.checks.chat_template import check_chat_template
    from rlhf_ray.models.reward_source import check_reward_model, reward_model_source
    from rlhf_ray.models.tokenizer_match import tokenizer_differences

    reward = context.reward
    if reward.model.path is None:
        return reward
    source = reward_model_source(reward.model, context.model)
    check_reward_model(source)
    model = with_moments(reward.model)
    own = _tokenizer_of(source)
    differences = tokenizer_differences(tokenizer, own)
    if differences and model.foreign_tokens == "refuse":
        raise RequestError(_foreign(reward.model, context.model, differences))
    if differences:
        check_chat_template(own, source.tokenizer_path or source.path)
        _try_prompts(own, prompts)
        report(
            "the reward model reads texts, rendered and tokenised again: it differs from the "
            f"policy in {'; '.join(differences)}"
        )
        for line in _unsaid(own, prompts):
            report(f"the reward model: {line}")
    foreign_tokens = "text" if differences else "refuse"
    return dataclasses.replace(
        reward, model=dataclasses.replace(model, foreign_tokens=foreign_tokens)
    )


REWARD_MODEL = ScoringKind(name="model", scoring=_scoring, resolve=resolve_reward_model)


def _tokenizer_of(source: ModelConfig) -> PreTrainedTokenizerBase:
    from rlhf_ray.models.loading import load_tokenizer

    try:
        return load_tokenizer(source)
    except RequestError as error:
        raise RequestError(f"the tokenizer of reward.model: {error}") from error


def with_moments(model: ModelRewardConfig) -> ModelRewardConfig:
    """The settings with mean and standard deviation of the scores, where they are normalised.

    Raises:
        RequestError: neither the settings nor the model's folder have them.
    """
    from rlhf_ray.models.reward_normalization import FILE_NAME, find_normalization

    if not model.normalize or model.mean is not None:
        return model
    assert model.path is not None
    found = find_normalization(model.path)
    if found is None:
        raise RequestError(
            f"reward.model.path is {model.path!r}, which has no {FILE_NAME}, so its scores cannot "
            f"be normalised: give reward.model.mean and reward.model.standard_deviation of its "
            f"scores, or use the scores as they are with reward.model.normalize=false"
        )
    return dataclasses.replace(model, mean=found.mean, standard_deviation=found.standard_deviation)


def _foreign(reward_model: ModelRewardConfig, policy: ModelConfig, differences: list[str]) -> str:
    return (
        f"the tokenizer of the reward model ({reward_model.tokenizer_path or reward_model.path}) "
        f"is not the policy's ({policy.tokenizer_path or policy.path}), whose token ids would "
        f"mean something else to it: {'; '.join(differences)}. With "
        f"reward.model.foreign_tokens=text it reads the texts, rendered with its own template and "
        f"tokenised again; if it was trained with another tokenizer than the one in its folder, "
        f"name that tokenizer in reward.model.tokenizer_path"
    )


def _try_prompts(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> None:
    """Refuse a template that cannot render the prompts, before any worker starts."""
    from rlhf_ray.data.examples.answer_encoding import encode_answers
    from rlhf_ray.data.rows import BadCell, DataError

    for prompt in prompts.prompts[:_NUM_TRIED]:
        try:
            (row,) = encode_answers(prompt.messages, ["x"], [True], tokenizer, tools=prompt.tools)
        except DataError as error:
            row = BadCell(str(error))
        if isinstance(row, BadCell):
            raise RequestError(
                f"reward.model.foreign_tokens=text: prompt {prompt.prompt_id} cannot be rendered "
                f"for the reward model: {row}"
            ) from row


def _unsaid(tokenizer: PreTrainedTokenizerBase, prompts: PromptSet) -> tuple[str, ...]:
    """Lines about texts of prompts that the tokenizer changes, as it will those of answers."""
    from rlhf_ray.data.tokens.encoding import encode
    from rlhf_ray.data.tokens.fidelity import TokenTextCheck

    check = TokenTextCheck(tokenizer)
    for prompt in prompts.prompts[:_NUM_TRIED]:
        text = "\n".join(message["content"] for message in prompt.messages)
        (ids,) = encode([text], tokenizer, add_special_tokens=False)
        if isinstance(ids, list):
            check.check_prompt(f"prompt {prompt.prompt_id}", text, ids)
    return check.lines()


class RewardModelActor(MeetingActor, ScorerActor):
    """One rank of a reward model."""

    def __init__(self, settings: RewardModelSettings) -> None:
        super().__init__()
        from rlhf_ray.training.roles.reward_scorer import RewardScorer

        self._worker = RewardScorer(
            reward_model=settings.reward_model,
            model=settings.model,
            seed=settings.seed,
            timeout_s=settings.timeout_s,
        )

    def join(self, group: RolloutGroup) -> None:
        """Take part in scoring a group for the rank that is asked for the result."""
        from rlhf_ray.rewards.scorer import scored_by

        scored_by(self._worker, group)
