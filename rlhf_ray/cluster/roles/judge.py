"""What a judge's engines, and what asks them, are built from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.config.run import Config


def judge_source(judge: JudgeConfig, model: ModelConfig) -> ModelConfig:
    """Where the judge and its tokenizer come from; it is loaded as the policy is."""
    assert judge.model is not None, "without a model there is no judge"
    if judge.is_policy:
        return model
    return replace(model, path=judge.model, tokenizer_path=None, chat_template=None)


def judge_settings(config: Config) -> dict[str, Any]:
    """Of the actor that asks the engines; nothing without a judge."""
    judge = config.reward.judge
    if judge.model is None:
        return {}
    return {
        "judge": judge,
        "source": judge_source(judge, config.model),
        "seed": config.seed,
    }


def judge_engine_settings(config: Config) -> dict[str, Any]:
    """Of `GenerationEngine`: as the run's engines, where the judge's group does not say otherwise.

    What they sample with travels with each question.
    """
    judge, generation = config.reward.judge, config.generation
    if not judge.has_engines:
        return {}
    longest = judge.max_sequence_tokens
    return {
        "generation": replace(
            generation,
            **judge.engine_values(),
            max_num_batched_tokens=max(
                generation.max_num_batched_tokens, longest, judge.max_num_seqs
            ),
            extra_engine_args={},
        ),
        "model": judge_source(judge, config.model),
        "max_sequence_tokens": longest,
        "greedy_from": 0,
        "request_timeout_s": judge.timeout_s,
    }


def longest_of_engines(config: Config) -> int:
    """Tokens of the longest sequence of the run's engines, which may judge or score texts too."""
    judge = config.reward.judge
    longest = config.max_sequence_tokens
    if config.is_evaluation and config.examples.eval_path is not None:
        # What is scored must be shorter than what the engine holds.
        return max(longest, config.examples.max_tokens + 1)
    return max(longest, judge.max_sequence_tokens) if judge.is_policy else longest
