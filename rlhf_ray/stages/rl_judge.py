"""The judge of a run: its model and its rubric are looked at before any worker starts."""

from __future__ import annotations

from collections.abc import Callable

from transformers import AutoConfig

from rlhf_ray.cluster.roles.judge import judge_source
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.run import Config
from rlhf_ray.data.errors import DataError
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.models.context import context_of
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.location import check_location, explained
from rlhf_ray.rewards.rubric import NoScore, Rubric

# Prompts that the rubric is filled in with on trial.
_NUM_TRIED = 64


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
