"""The scoring service: /health and /score over a reward model.

The model is any `TextScorer`, so that the service is tested without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.data.chat_fields import Message, Tool
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.serving.requests import BadRequest, ScoreRequest, read_request

# Value of the Retry-After header while the model is being loaded.
_START_WAIT_S = 2


class TextScorer(Protocol):
    """A model that scores texts, such as `training.roles.reward_scorer.RewardScorer`."""

    def score_texts(
        self,
        messages: Sequence[Message],
        answers: Sequence[str],
        finish_reasons: Sequence[str],
        *,
        tools: Sequence[Tool] = (),
    ) -> Sequence[Outcome]: ...


class ScoreService:
    """Answers requests; until `begin` it answers 503.

    Args:
        facts: description of the model in the reply to /health.
        executor: one thread, in which the model scores one request after the other.
        token: bearer token that requests must carry; None for an open service.
        max_request_bytes: limit of a request's body.
    """

    def __init__(
        self,
        *,
        facts: dict[str, Any],
        executor: Executor,
        token: BearerToken | None,
        max_request_bytes: int,
    ) -> None:
        self._facts = facts
        self._executor = executor
        self._token = token
        self._max_bytes = max_request_bytes
        self._scorer: TextScorer | None = None

    def begin(self, scorer: TextScorer) -> None:
        """Answer with this model from now on."""
        self._scorer = scorer

    def application(self, lifespan: Callable[[Starlette], Any] | None = None) -> Starlette:
        """The ASGI application of the service."""
        return Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/score", self._score, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _as_json, 500: _as_json},
            lifespan=lifespan,
        )

    async def _health(self, request: Request) -> Response:
        refused = self._refusal(request)
        return refused or JSONResponse({"status": "ok", **self._facts})

    async def _score(self, request: Request) -> Response:
        refused = self._refusal(request)
        if refused is not None:
            return refused
        try:
            asked = read_request(await self._body(request))
        except BadRequest as bad:
            return _error(bad.status, str(bad))
        loop = asyncio.get_running_loop()
        outcomes = await loop.run_in_executor(self._executor, self._outcomes, asked)
        return JSONResponse(_reply(outcomes))

    def _outcomes(self, asked: ScoreRequest) -> Sequence[Outcome]:
        assert self._scorer is not None, "requests are refused before"
        return self._scorer.score_texts(
            asked.chat, asked.responses, asked.reasons, tools=asked.tools
        )

    def _refusal(self, request: Request) -> Response | None:
        """The error reply if the token is wrong, or the model is still being loaded; else None."""
        given = request.headers.get("Authorization", "")
        if self._token is not None and not self._token.admits(given):
            reply = _error(401, "the bearer token is missing or wrong")
            reply.headers["WWW-Authenticate"] = "Bearer"
            return reply
        if self._scorer is None:
            reply = _error(503, "the model is being loaded")
            reply.headers["Retry-After"] = str(_START_WAIT_S)
            return reply
        return None

    async def _body(self, request: Request) -> bytes:
        """Read the whole body; reading stops at the limit.

        Raises:
            BadRequest: 413, the body is too long.
        """
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > self._max_bytes:
                raise BadRequest(
                    413,
                    f"the request is longer than serve.max_request_bytes={self._max_bytes:,}; "
                    f"send fewer responses at once",
                )
        return bytes(body)


def _reply(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    failed = [outcome if isinstance(outcome, ItemFailure) else None for outcome in outcomes]
    reply: dict[str, Any] = {
        "scores": [None if isinstance(outcome, ItemFailure) else outcome for outcome in outcomes]
    }
    if any(failed):
        reply["errors"] = [None if failure is None else failure.message for failure in failed]
    return reply


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status_code=status)


async def _as_json(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail)
    return _error(500, f"{type(error).__name__}: {error}")
