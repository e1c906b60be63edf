"""Plain completions of texts, such as a judge's answers: no log-probabilities, no training."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.generation.errors import RequestFailed
from rlhf_ray.generation.results import GARBAGE, is_garbage, said_tokens
from rlhf_ray.records import FailureKind

if TYPE_CHECKING:
    from rlhf_ray.generation.requests import EngineRequests


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """A text to continue, as token ids.

    Attributes:
        temperature: 0 for greedy decoding.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """Continuation of a text, without special tokens."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionFailure:
    """Reason why a text was not continued."""

    kind: FailureKind
    message: str


CompletionOutcome = Completion | CompletionFailure


async def complete(
    requests: EngineRequests,
    asked: Sequence[CompletionRequest],
    *,
    decode: Callable[[Sequence[int]], str],
    timeout_s: float,
    end_token_ids: Sequence[int] = (),
) -> list[CompletionOutcome]:
    """Run all requests at once; returns an outcome for each, in order.

    They start even while requests of a batch wait for each other: the batch may wait for a judge's
    answers.

    Args:
        decode: tokens to text, special tokens left out.
        timeout_s: time limit for each request.
        end_token_ids: see `sampling.sampling_arguments`.

    Raises:
        EngineLost: the engine process has ended.
    """
    calls = (_complete(requests, request, decode, timeout_s, end_token_ids) for request in asked)
    return await asyncio.gather(*calls)


async def _complete(
    requests: EngineRequests,
    request: CompletionRequest,
    decode: Callable[[Sequence[int]], str],
    timeout_s: float,
    end_token_ids: Sequence[int],
) -> CompletionOutcome:
    submission = requests.submit(
        request.token_ids, _arguments(request, end_token_ids), order=(0, 0)
    )
    try:
        async with asyncio.timeout(timeout_s):
            output = await requests.result(submission)
    except TimeoutError:
        return CompletionFailure(
            kind=FailureKind.REWARD_TIMEOUT, message=f"it was not done within {timeout_s:g} s"
        )
    except RequestFailed as error:
        return CompletionFailure(kind=FailureKind.REWARD_ERROR, message=str(error))
    said = output.outputs[0]
    if is_garbage(said.logprobs.logprobs):
        return CompletionFailure(kind=FailureKind.REWARD_ERROR, message=GARBAGE)
    return Completion(text=decode(said_tokens(said)))


def _arguments(request: CompletionRequest, end_token_ids: Sequence[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`."""
    return {
        "n": 1,
        "seed": request.seed,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "stop_token_ids": list(end_token_ids),
        "detokenize": False,
        # Of the sampled tokens: they tell a text from garbage.
        "logprobs": 0,
        "flat_logprobs": True,
    }
