"""Plain completions: of a fake engine's outputs."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

from rlhf_ray.generation.completions import (
    Completion,
    CompletionFailure,
    CompletionRequest,
    complete,
)
from rlhf_ray.records import FailureKind


class Requests:
    """Says token 0, with a log-probability for each question."""

    def __init__(self, logprobs: list[float]) -> None:
        self._logprobs = logprobs
        self.arguments: list[dict[str, Any]] = []

    def submit(self, token_ids: Any, arguments: dict[str, Any], **_: Any) -> int:
        self.arguments.append(arguments)
        return len(self.arguments) - 1

    async def result(self, number: int) -> Any:
        flat = SimpleNamespace(token_ids=[0], logprobs=[self._logprobs[number]])
        said = SimpleNamespace(token_ids=[0], stop_reason=None, logprobs=flat)
        return SimpleNamespace(outputs=[said])


def test_an_answer_sampled_from_nan_is_a_failure():
    asked = [
        CompletionRequest(token_ids=(1,), max_tokens=1, temperature=0.0, seed=0) for _ in range(2)
    ]
    requests: Any = Requests([-0.5, math.nan])
    said = asyncio.run(complete(requests, asked, decode=lambda ids: f"<{ids}>", timeout_s=9))
    assert said[0] == Completion(text="<[0]>")
    assert isinstance(said[1], CompletionFailure)
    assert said[1].kind is FailureKind.REWARD_ERROR
    assert "log-probabilities are NaN" in said[1].message
    assert all(arguments["logprobs"] == 0 for arguments in requests.arguments)
