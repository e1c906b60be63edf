"""The load measurement: percentiles, checks of answers, count of failures."""

from __future__ import annotations

import asyncio
import math

import pytest
from openai import AsyncOpenAI

from rlhf_ray.serving.load import Answered, measure, percentile, report_of
from tests.unit.serving.endpoint import KEY, Endpoint


def answered(prompt: str, answer: str | None, seconds: float, *, tokens: int = 2) -> Answered:
    error = "503 come again" if answer is None else None
    return Answered(prompt=prompt, answer=answer, error=error, seconds=seconds, num_tokens=tokens)


@pytest.mark.parametrize(
    ("share", "value"), [(50, 5), (95, 10), (99, 10), (10, 1), (11, 2), (100, 10)]
)
def test_percentiles(share, value):
    assert percentile(range(1, 11), share) == value
    assert percentile([7.0], share) == 7
    assert math.isnan(percentile([], share))


def test_a_report():
    results = [answered("a", "A", 1), answered("b", "X", 3), answered("c", None, 9, tokens=0)]
    report = report_of(results, seconds=4, expected={"a": "A", "b": "B", "c": "C"})
    assert report.as_dict() == {
        "num_requests": 3,
        "num_failed": 1,
        "num_wrong": 1,
        "seconds": 4,
        "latency_s": {"p50": 1, "p95": 3, "p99": 3},
        "tokens_per_s": 1.0,
        "requests_per_s": 0.5,
    }
    assert report_of(results, seconds=4).num_wrong == 0


@pytest.mark.unit_slow
@pytest.mark.parametrize("stream", [True, False])
def test_against_an_endpoint(tmp_path, stream):
    endpoint = Endpoint(tmp_path).wait_until_ready()
    prompts = [f"word-{index} again" for index in range(40)]
    expected = {prompt: f"{prompt} " if stream else prompt for prompt in prompts}
    expected["too long"] = "never"

    async def load():
        client = AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key=KEY.secret, max_retries=0)
        async with client:
            return await measure(
                client,
                model="m",
                prompts=[*prompts, "too long"],
                at_once=8,
                expected=expected,
                stream=stream,
            )

    try:
        report, results = asyncio.run(load())
    finally:
        endpoint.close()
    assert (report.num_requests, report.num_failed, report.num_wrong) == (41, 1, 0)
    assert [result.prompt for result in results] == [*prompts, "too long"]
    assert results[-1].error is not None
    assert results[-1].error.startswith("400 ")
    assert 0 < report.latency_s["p50"] <= report.latency_s["p99"] < 10
