"""Sampling parameters of vLLM from the configuration, and the seed of each sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.groups.generation import GenerationConfig

# vLLM 0.32 raises lower temperatures to this one without an error, so that the learner would divide
# by another temperature than the engine. It refuses temperatures above the highest.
LOWEST_TEMPERATURE = 0.01
HIGHEST_TEMPERATURE = 2.0
# vLLM 0.32 on a CPU keeps tokens that tie with the last one of the top k (on a GPU it drops
# them), so more than k are requested. In bfloat16, logits between 16 and 32 are multiples of 1/8,
# and about k tokens lie within a nat of the last one: k / 8 of them tie.
_LEAST_MARGIN = 16
_MARGIN_SHARE = 4


def sample_seed(prompt_seed: int, sample_index: int) -> int:
    """Seed of one sample, in [0, 2^63): the same on every machine and in every run."""
    digest = hashlib.sha256(f"{prompt_seed}:{sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def num_returned(top_k: int, *, vocab_size: int) -> int:
    """Number of the likeliest tokens to request, so that all tokens of the top k are among them.

    0 without a limit (`top_k` = 0): only the sampled token is returned.
    """
    if top_k == 0:
        return 0
    return min(top_k + max(_LEAST_MARGIN, top_k // _MARGIN_SHARE), vocab_size)


def sampling_arguments(
    generation: GenerationConfig,
    *,
    seed: int,
    vocab_size: int,
    greedy: bool = False,
    end_token_ids: Sequence[int] = (),
) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams` for one sample.

    Log-probabilities of sampled tokens come back under the sampling distribution, because the
    engine runs with `logprobs_mode="processed_logprobs"`: after temperature, top-k, top-p and
    min-p, normalised over the tokens that these leave. With a `top_k`, log-probabilities of the
    likeliest tokens come back too; the finite ones are the support of the sampling distribution. A
    greedy answer samples from the likeliest token only.

    Args:
        end_token_ids: tokens that end a response, in addition to those that vLLM reads from the
            model's generation settings.

    Raises:
        ValueError: vLLM would change or refuse the temperature.
    """
    temperature = generation.temperature
    if not LOWEST_TEMPERATURE <= temperature <= HIGHEST_TEMPERATURE:
        raise ValueError(
            f"generation.temperature={temperature:g} is outside of vLLM's range: "
            f"choose one from {LOWEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g}"
        )
    return {
        "n": 1,
        "seed": seed,
        "temperature": temperature,
        "top_p": 1.0 if greedy else generation.top_p,
        "top_k": 1 if greedy else generation.top_k,
        "min_p": 0.0 if greedy else generation.min_p,
        "max_tokens": generation.max_response_tokens,
        "min_tokens": generation.min_response_tokens,
        "ignore_eos": generation.ignore_eos,
        "stop": list(generation.stop) or None,
        # vLLM ignores its own ends with `ignore_eos`, but not these.
        "stop_token_ids": [] if generation.ignore_eos else list(end_token_ids),
        # In addition to the sampled token.
        "logprobs": num_returned(generation.top_k, vocab_size=vocab_size),
        "flat_logprobs": True,
        # vLLM needs text only to look for stop strings; the response is decoded at the end.
        "detokenize": bool(generation.stop),
        "skip_special_tokens": True,
    }


def scoring_arguments() -> dict[str, Any]:
    """Arguments of `SamplingParams` for scoring a prompt: every token of it, at temperature 1."""
    return {
        "n": 1,
        "temperature": 1.0,
        "max_tokens": 1,
        "prompt_logprobs": 0,
        "flat_logprobs": True,
        "detokenize": False,
        # The tokens of a cached prefix are not computed, and would not be scored.
        "skip_reading_prefix_cache": True,
    }
