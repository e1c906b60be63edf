"""The scoring service: /health and /score over a reward model.

The model is any `TextScorer`, so that the service is tested without one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.data.chat_fields import Message, Tool
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome
from rlhf_ray.serving.arrival import OwnRequests, read_body
from rlhf_ray.serving.openai_errors import Refused
from rlhf_ray.serving.request_limits import CHARACTERS_PER_TOKEN, size_of
from rlhf_ray.serving.requests import ScoreRequest, read_request

# Value of the Retry-After header while the model is being loaded.
_START_WAIT_S = 2
# Most work that the model is given at once. Between two pieces other requests have their turn, and
# a client that has gone is noticed. A piece is larger than the group of most runs, because answers
# to one prompt are computed faster together.
_PIECE_RESPONSES, _PIECE_CHARACTERS = 64, 500_000


class TextScorer(Protocol):
    """A model that scores texts, such as `training.roles.reward_scorer.RewardScorer`."""

    @property
    def max_tokens(self) -> int:
        """Longest prompt and answer together that the model reads."""
        ...

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
        executor: one thread, in which the model scores one piece of a request after the other.
        token: bearer token that requests must carry; None for an open service.
        settings: limits of requests, and the address.

    Attributes:
        num_under_way: requests in flight.
    """

    def __init__(
        self,
        *,
        facts: dict[str, Any],
        executor: Executor,
        token: BearerToken | None,
        settings: ServeConfig,
    ) -> None:
        self._facts = facts
        self._executor = executor
        self._token = token
        self._settings = settings
        self._scorer: TextScorer | None = None
        self.num_under_way = 0
        # Whose turn it is to score; others wait in the order in which they came.
        self._turn = asyncio.Lock()

    def begin(self, scorer: TextScorer) -> None:
        """Answer with this model from now on."""
        self._scorer = scorer

    def application(self, lifespan: Callable[[Starlette], Any] | None = None) -> Starlette:
        """The ASGI application of the service."""
        own = Middleware(OwnRequests, hosts=(self._settings.host,), error_reply=_error)
        return Starlette(
            middleware=[own] if self._token is None else [],
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/score", self._score, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _as_json, 500: _as_json},
            lifespan=lifespan,
        )

    async def _health(self, request: Request) -> Response:
        refusal = self._refusal(request)
        return refusal or JSONResponse({"status": "ok", **self._facts})

    async def _score(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        most = self._settings.max_requests_under_way
        if self.num_under_way >= most:
            return _try_again(f"{most} requests are in flight, serve.max_requests_under_way")
        self.num_under_way += 1
        try:
            return await self._answer(request)
        except Refused as refused:
            return _error(refused.status, str(refused))
        except ClientDisconnect:
            return Response(status_code=400)  # The client is gone and reads no reply.
        finally:
            self.num_under_way -= 1

    async def _answer(self, request: Request) -> Response:
        limits = self._settings.limits
        body = await read_body(
            request, max_bytes=self._settings.max_request_bytes, timeout_s=limits.client_s
        )
        asked = read_request(body)
        for name, number, most in (
            ("responses", len(asked.responses), limits.responses),
            ("prompt_parts", len(asked.chat), limits.prompt_parts),
        ):
            if number > most:
                raise Refused(
                    422,
                    f"the request has {number:,} {name.replace('prompt_parts', 'messages')}, more "
                    f"than serve.limits.{name}={most:,}; send it in parts",
                )
        try:
            async with asyncio.timeout(limits.answer_s):
                outcomes = await self._outcomes(request, asked)
        except TimeoutError:
            late = f"the scores took longer than serve.limits.answer_s={limits.answer_s:g} s"
            raise Refused(504, late) from None
        return JSONResponse(_reply(outcomes))

    async def _outcomes(self, request: Request, asked: ScoreRequest) -> list[Outcome]:
        """An outcome for every response.

        Raises:
            ClientDisconnect: the client has gone; the rest is not scored.
        """
        scorer = self._scorer
        assert scorer is not None, "requests are refused before"
        outcomes, lengths = self._too_long(asked, scorer.max_tokens)
        loop = asyncio.get_running_loop()
        for piece in pieces(lengths):
            responses = [asked.responses[index] for index in piece]
            reasons = [asked.reasons[index] for index in piece]
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                scored = await loop.run_in_executor(
                    self._executor, self._scores, asked, responses, reasons
                )
            outcomes |= dict(zip(piece, scored, strict=True))
        return [outcomes[index] for index in range(len(asked.responses))]

    def _scores(
        self, asked: ScoreRequest, responses: Sequence[str], reasons: Sequence[str]
    ) -> Sequence[Outcome]:
        assert self._scorer is not None, "requests are refused before"
        return self._scorer.score_texts(asked.chat, responses, reasons, tools=asked.tools)

    def _too_long(
        self, asked: ScoreRequest, max_tokens: int
    ) -> tuple[dict[int, Outcome], dict[int, int]]:
        """Failures of responses that no tokenizer needs to see, and characters of the others.

        A tokenizer reads a text to its end before it can say that the text is too long.
        """
        most = self._settings.limits.prompt_characters or CHARACTERS_PER_TOKEN * max_tokens
        prompt = size_of(
            [*asked.chat, *asked.tools], most_characters=most, most_items=most
        ).characters
        failures: dict[int, Outcome] = {}
        lengths: dict[int, int] = {}
        for index, response in enumerate(asked.responses):
            num_characters = prompt + len(response)
            if num_characters <= most:
                lengths[index] = num_characters
                continue
            failures[index] = ItemFailure(
                kind=FailureKind.REWARD_ERROR,
                message=f"prompt and response have more than {most:,} characters, and the reward "
                f"model reads at most {max_tokens:,} tokens; serve.limits.prompt_characters is "
                f"this limit",
            )
        return failures, lengths

    def _refusal(self, request: Request) -> Response | None:
        """The error reply if the token is wrong, or the model is still being loaded; else None."""
        given = request.headers.get("Authorization", "")
        if self._token is not None and not self._token.admits(given):
            reply = _error(401, "the bearer token is missing or wrong")
            reply.headers["WWW-Authenticate"] = "Bearer"
            return reply
        if self._scorer is None:
            return _try_again("the model is being loaded")
        return None


def pieces(lengths: dict[int, int]) -> Iterator[list[int]]:
    """Divide the indices of responses with their characters into pieces of bounded work."""
    piece: list[int] = []
    num_characters = 0
    for index, length in lengths.items():
        is_full = len(piece) >= _PIECE_RESPONSES or num_characters + length > _PIECE_CHARACTERS
        if piece and is_full:
            yield piece
            piece, num_characters = [], 0
        piece.append(index)
        num_characters += length
    if piece:
        yield piece


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


def _try_again(message: str) -> JSONResponse:
    reply = _error(503, message)
    reply.headers["Retry-After"] = str(_START_WAIT_S)
    return reply


async def _as_json(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _error(error.status_code, error.detail)
    return _error(500, f"{type(error).__name__}: {error}")
