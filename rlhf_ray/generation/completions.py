"""Texts that an engine continues for somebody else than the learner: no log-probabilities."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_ray.generation.errors import RequestFailed
from rlhf_ray.records import FailureKind

if TYPE_CHECKING:
    from rlhf_ray.generation.requests import EngineRequests


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """What is to be continued.

    Attributes:
        temperature: 0 takes the likeliest tokens.
    """

    token_ids: tuple[int, ...]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """How it was continued: the text, without special tokens."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionFailure:
    """Why it was not."""

    kind: FailureKind
    message: str


CompletionOutcome = Completion | CompletionFailure


async def complete(
    requests: EngineRequests,
    asked: Sequence[CompletionRequest],
    *,
    decode: Callable[[Sequence[int]], str],
    timeout_s: float,
) -> list[CompletionOutcome]:
    """An outcome for each request, in order; all of them run at once.

    They start also while the requests of a batch are held: a batch may wait for what comes out of
    them, and those that it counts are its own alone.

    Args:
        timeout_s: for each of them.

    Raises:
        EngineLost: the engine process has ended.
    """
    calls = (_complete(requests, request, decode, timeout_s) for request in asked)
    return await asyncio.gather(*calls)


async def _complete(
    requests: EngineRequests,
    request: CompletionRequest,
    decode: Callable[[Sequence[int]], str],
    timeout_s: float,
) -> CompletionOutcome:
    submission = requests.submit(
        request.token_ids, _arguments(request), order=(0, 0), may_be_held=False
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
    return Completion(text=decode(output.outputs[0].token_ids))


def _arguments(request: CompletionRequest) -> dict[str, Any]:
    """Of vLLM's `SamplingParams`."""
    return {
        "n": 1,
        "seed": request.seed,
        "temperature": request.temperature,
        "max_tokens": request.max_tokens,
        "detokenize": False,
    }
