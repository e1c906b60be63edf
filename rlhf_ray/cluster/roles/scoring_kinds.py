"""The kinds of rewards, in the order in which they score a group after the reward functions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rlhf_ray.cluster.roles.http_reward import HTTP_REWARD
from rlhf_ray.cluster.roles.judge import JUDGE
from rlhf_ray.cluster.roles.reward_model import REWARD_MODEL
from rlhf_ray.cluster.roles.rewards import Report, Scoring, ScoringContext, ScoringKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_ray.config.groups.reward import RewardConfig
    from rlhf_ray.data.prompts.load import PromptSet

SCORING_KINDS: tuple[ScoringKind, ...] = (REWARD_MODEL, HTTP_REWARD, JUDGE)


def scorings_of(context: ScoringContext) -> tuple[Scoring, ...]:
    """The kinds of rewards that a configuration asks for."""
    found = (kind.scoring(context) for kind in SCORING_KINDS)
    return tuple(scoring for scoring in found if scoring is not None)


def check_scoring(context: ScoringContext, prompts: PromptSet, *, report: Report) -> None:
    """Refuse, before any worker starts, what cannot score.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: the reason.
    """
    for kind in SCORING_KINDS:
        kind.check(context, prompts, report)


def resolve_scoring(
    context: ScoringContext,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptSet,
    *,
    report: Report,
) -> RewardConfig:
    """The reward settings with everything decided that a worker would have to decide.

    Args:
        tokenizer: the policy's.
        report: takes lines for people.

    Raises:
        RequestError: a scorer cannot be used with this policy.
    """
    for kind in SCORING_KINDS:
        reward = kind.resolve(context, tokenizer, prompts, report)
        context = replace(context, reward=reward)
    return context.reward
