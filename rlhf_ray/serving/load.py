"""Load measurement: many requests to an OpenAI-compatible endpoint, and their results."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """Result of one request.

    Attributes:
        answer: text of the answer; None if the request failed.
        error: message of the failure, with the HTTP status if there was one.
        seconds: from the request to the end of the answer.
        num_tokens: length of the answer.
    """

    prompt: str
    answer: str | None
    error: str | None
    seconds: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """Figures of all requests together.

    Attributes:
        num_failed: requests that got an error.
        num_wrong: answers that differ from the expected ones.
        latency_s: seconds by percentile, such as p95, over the answered requests.
        tokens_per_s: tokens of all answers over the whole time.
    """

    num_requests: int
    num_failed: int
    num_wrong: int
    seconds: float
    latency_s: dict[str, float]
    tokens_per_s: float
    requests_per_s: float

    def as_dict(self) -> dict[str, Any]:
        """The fields as a dict, for JSON."""
        return asdict(self)


async def ask_all(
    client: AsyncOpenAI,
    *,
    model: str,
    prompts: Sequence[str],
    at_once: int,
    stream: bool = False,
    **settings: Any,
) -> list[Answered]:
    """Send every prompt, `at_once` of them at a time; results in the order of the prompts.

    Args:
        client: without retries (`max_retries=0`), which would hide errors.
        stream: take the answers as streams.
        settings: of every request, such as max_tokens.
    """
    places = asyncio.Semaphore(at_once)

    async def ask(prompt: str) -> Answered:
        async with places:
            return await _ask(client, model, prompt, stream=stream, settings=settings)

    return list(await asyncio.gather(*map(ask, prompts)))


async def measure(
    client: AsyncOpenAI,
    *,
    model: str,
    prompts: Sequence[str],
    at_once: int,
    expected: Mapping[str, str] | None = None,
    **settings: Any,
) -> tuple[LoadReport, list[Answered]]:
    """Send every prompt and report.

    Args:
        expected: the right answer to each prompt; None takes any.
        settings: see `ask_all`.
    """
    began = time.monotonic()
    answered = await ask_all(client, model=model, prompts=prompts, at_once=at_once, **settings)
    return report_of(answered, seconds=time.monotonic() - began, expected=expected), answered


def report_of(
    answered: Sequence[Answered], *, seconds: float, expected: Mapping[str, str] | None = None
) -> LoadReport:
    """The figures of requests that took `seconds` together."""
    good = [one for one in answered if one.error is None]
    times = sorted(one.seconds for one in good)
    wrong = [one for one in good if expected is not None and one.answer != expected[one.prompt]]
    return LoadReport(
        num_requests=len(answered),
        num_failed=len(answered) - len(good),
        num_wrong=len(wrong),
        seconds=seconds,
        latency_s={f"p{share}": percentile(times, share) for share in PERCENTILES},
        tokens_per_s=sum(one.num_tokens for one in good) / seconds,
        requests_per_s=len(good) / seconds,
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of the values do not exceed; NaN without values."""
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share / 100 * len(ordered)) - 1)]


async def _ask(
    client: AsyncOpenAI, model: str, prompt: str, *, stream: bool, settings: Mapping[str, Any]
) -> Answered:
    # Imported here: it takes a second, which importers of this module should not pay.
    from openai import APIError, APIStatusError

    began = time.monotonic()
    answer: str | None = None
    error: str | None = None
    num_tokens = 0
    messages: Any = [{"role": "user", "content": prompt}]
    try:
        if stream:
            answer, num_tokens = await _streamed(client, model, messages, settings)
        else:
            reply = await client.chat.completions.create(model=model, messages=messages, **settings)
            answer = reply.choices[0].message.content or ""
            num_tokens = reply.usage.completion_tokens if reply.usage else 0
    except APIStatusError as failed:
        error = f"{failed.status_code} {failed.message}"
    except APIError as failed:
        error = f"{type(failed).__name__}: {failed.message}"
    return Answered(
        prompt=prompt,
        answer=answer if error is None else None,
        error=error,
        seconds=time.monotonic() - began,
        num_tokens=num_tokens,
    )


async def _streamed(
    client: AsyncOpenAI, model: str, messages: Any, settings: Mapping[str, Any]
) -> tuple[str, int]:
    pieces: list[str] = []
    num_tokens = 0
    stream = await client.chat.completions.create(
        model=model,
        messages=messages,
        stream=True,
        stream_options={"include_usage": True},
        **settings,
    )
    async for chunk in stream:
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        num_tokens = chunk.usage.completion_tokens if chunk.usage else num_tokens
    return "".join(pieces), num_tokens
