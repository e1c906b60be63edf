"""The context lengths of models against the lengths that a run is configured for.

A model with learned positions fails beyond its last one, in a worker, and one with rotary
positions computes something that it was never trained for, without a word.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.data import ExamplesConfig, TextsConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.run import Config

Report = Callable[[str], None]

_RESPONSE = "generation.max_response_tokens"


def context_of_model(model: ModelConfig, *, key: str = "model.path") -> int | None:
    """Most tokens that the model reads; None without a limit.

    Raises:
        RequestError: its configuration cannot be read.
    """
    # Seconds of import, which the description of a stage does not need.
    from rlhf_ray.models.checks.config_file import load_model_config
    from rlhf_ray.models.context import context_of

    return context_of(load_model_config(model, key=key))


def examples_within(
    examples: ExamplesConfig, context: int | None, path: str, report: Report
) -> ExamplesConfig:
    """The settings of examples with a length that the model reads.

    Longer examples are then cut, skipped or refused by `examples.on_long`, and counted.

    Args:
        context: of the model at `path`.
        report: takes a line if the limit is the model's.

    Raises:
        RequestError: the model reads less than two tokens, so that nothing can be predicted.
    """
    if context is None or examples.max_tokens <= context:
        return examples
    report(_limited("examples.max_tokens", examples.max_tokens, context, path))
    return dataclasses.replace(examples, max_tokens=context)


def texts_within(texts: TextsConfig, context: int | None, path: str, report: Report) -> TextsConfig:
    """Like `examples_within`, for the texts of PPO-ptx and `texts.on_long_text`."""
    if context is None or texts.max_tokens <= context:
        return texts
    report(_limited("texts.max_tokens", texts.max_tokens, context, path))
    return dataclasses.replace(texts, max_tokens=context)


def _limited(key: str, value: int, context: int, path: str) -> str:
    if context < 2:
        raise RequestError(
            f"{path} reads at most {context} tokens by its config.json, so that there is nothing "
            f"to predict; name another model"
        )
    return (
        f"{key}={value} is lowered to {context}: {path} reads no more tokens "
        f"by its config.json, and longer ones count as too long"
    )


def check_sequences(config: Config) -> None:
    """Refuse sequences of a run or an evaluation that one of its models cannot read.

    Args:
        config: with resolved paths.

    Raises:
        RequestError: names the model, its limit, and the keys to lower.
    """
    longest = config.max_sequence_tokens
    for key, model in _readers(config):
        context = context_of_model(model, key=key)
        if context is not None and longest > context:
            raise RequestError(
                f"data.max_prompt_tokens={config.data.max_prompt_tokens} and "
                f"{_RESPONSE}={config.generation.max_response_tokens} make sequences of up to "
                f"{longest} tokens, but {key} ({model.path}) reads at most {context} by its "
                f"config.json; lower them to {context} together, or take a model that reads more"
            )


def _readers(config: Config) -> Iterator[tuple[str, ModelConfig]]:
    """The models that read prompts with their responses as the policy's tokens."""

    def at(path: str) -> ModelConfig:
        return dataclasses.replace(config.model, path=path)

    # `generation.extra_engine_args` may stretch the positions of the engine, which alone reads
    # sequences in an evaluation.
    if not (config.is_evaluation and "hf_overrides" in config.generation.extra_engine_args):
        yield "model.path", config.model
    if config.needs_critic and config.critic.path:
        yield "critic.path", at(config.critic.path)
    if config.needs_reference and config.reference.path:
        yield "reference.path", at(config.reference.path)
    reward_model = config.reward.model
    # A reward model that reads texts has other tokens, and refuses a sample that is too long.
    if config.needs_reward_model and reward_model.path and reward_model.foreign_tokens != "text":
        yield "reward.model.path", at(reward_model.path)


def check_engine_length(model: ModelConfig, tokens: int | None, *, key: str) -> None:
    """Refuse a length of a setting that the model cannot read.

    Args:
        tokens: the value of the setting; None takes the model's limit.
        key: dotted name of the setting.

    Raises:
        RequestError: names the setting and the limit.
    """
    context = context_of_model(model) if tokens is not None else None
    if tokens is not None and context is not None and tokens > context:
        raise RequestError(
            f"{key}={tokens}: {model.path} reads at most {context} tokens by its config.json; "
            f"lower it, or take a model that reads more"
        )
