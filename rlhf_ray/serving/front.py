"""The OpenAI-compatible endpoint in front of a fleet: keys, checks, and the way to a replica."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, NoReturn

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.serving.arrival import OwnRequests, read_body
from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.front_metrics import CONTENT_TYPE, FrontMetrics
from rlhf_ray.serving.openai_errors import RETRY_AFTER_S, Refused, as_openai_error, error_reply
from rlhf_ray.serving.relay import CLIENT_GONE, Asked, Relayed
from rlhf_ray.serving.replica import ReplicaState
from rlhf_ray.serving.request_limits import check_roles, check_size, check_tools, constraint_of

# Paths that are passed on to a replica.
CHAT_PATH = "/v1/chat/completions"
ASKED_PATHS = (CHAT_PATH, "/v1/completions", "/tokenize", "/detokenize")


class Front:
    """Answers requests.

    Args:
        fleet: the replicas that generate.
        model_name: name of the model in requests.
        token: bearer token that requests must carry; None for an open endpoint.
        settings: limits of requests, roles of messages, and the address.
        parses_calls: the engines read calls of tools out of answers.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        model_name: str,
        token: BearerToken | None,
        settings: ServeConfig,
        parses_calls: bool,
    ) -> None:
        self._fleet = fleet
        self._model_name = model_name
        self._token = token
        self._settings = settings
        self._parses_calls = parses_calls
        self._metrics = FrontMetrics(fleet)

    def application(self, lifespan: Callable[[Starlette], Any] | None = None) -> Starlette:
        """The ASGI application of the endpoint."""
        handlers: dict[Any, Any] = dict.fromkeys(
            (Refused, HTTPException, 500, json.JSONDecodeError), as_openai_error
        )
        open_to_all = Middleware(OwnRequests, hosts=(self._settings.host,), error_reply=error_reply)
        return Starlette(
            middleware=[open_to_all] if self._token is None else [],
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/metrics", self._show_metrics, methods=["GET"]),
                Route("/v1/models", self._models, methods=["GET"]),
                Route("/v1/models/{name:path}", self._model, methods=["GET"]),
                *(Route(path, self._ask, methods=["POST"]) for path in ASKED_PATHS),
            ],
            exception_handlers=handlers,
            lifespan=lifespan,
        )

    async def _health(self, _: Request) -> Response:
        """State of the fleet, for load balancers: without a key, and without further facts."""
        state, fleet = self._fleet.state, self._fleet
        is_ready = state is ReplicaState.READY
        facts = {"status": "ok" if is_ready else str(state), "replicas_ready": fleet.num_ready}
        reply = JSONResponse(facts, status_code=200 if is_ready else 503)
        if not is_ready:
            reply.headers["Retry-After"] = str(RETRY_AFTER_S)
        return reply

    async def _show_metrics(self, request: Request) -> Response:
        self._check_key(request)
        return Response(await self._metrics.text(), media_type=CONTENT_TYPE)

    async def _models(self, request: Request) -> Response:
        self._check_key(request)
        return self._relayed(Asked(path="/v1/models"), self._counter(request))

    async def _model(self, request: Request) -> Response:
        self._check_key(request)
        self._check_model(request.path_params["name"])
        facts = {"id": self._model_name, "object": "model", "created": 0, "owned_by": "rlhf_ray"}
        return JSONResponse(facts)

    async def _ask(self, request: Request) -> Response:
        # Everything is checked before the request goes to a replica, so that a bad request costs no
        # engine time. `Relayed` counts what it answers; refusals are counted here.
        count = self._counter(request)
        try:
            self._check_key(request)
            asked = await self._read(request)
        except Refused as refused:
            count(refused.status)
            raise
        except ClientDisconnect:
            count(CLIENT_GONE)
            return Response(status_code=400)  # The client is gone and reads no reply.
        return self._relayed(asked, count)

    async def _read(self, request: Request) -> Asked:
        settings, limits = self._settings, self._settings.limits
        body = await read_body(
            request, max_bytes=settings.max_request_bytes, timeout_s=limits.client_s
        )
        fields = read_fields(body)
        self._check_model(fields.get("model") or self._model_name)
        num_answers = check_size(
            fields,
            limits,
            context_tokens=self._fleet.context_tokens,
            max_requests=self._fleet.max_in_flight,
        )
        check_roles(fields, settings.roles)
        if request.url.path == CHAT_PATH:
            check_tools(fields, parses_calls=self._parses_calls)
        return Asked(
            path=request.url.path,
            body=body,
            num_answers=num_answers,
            constraint=constraint_of(fields),
        )

    def _relayed(self, asked: Asked, count: Callable[[int], None]) -> Response:
        return Relayed(self._fleet, asked, count, timeout_s=self._settings.limits.answer_s)

    def _counter(self, request: Request) -> Callable[[int], None]:
        began = time.monotonic()
        path = request.url.path

        def count(status: int) -> None:
            self._metrics.count(path, status, time.monotonic() - began)

        return count

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("Authorization", "")
        if self._token is not None and not self._token.admits(given):
            raise Refused(401, "the API key is missing or wrong")

    def _check_model(self, name: Any) -> None:
        if name != self._model_name:
            raise Refused(
                404, f"the model {name!r} is not served here; ask for {self._model_name!r}"
            )


def read_fields(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        Refused: 400, the body is not a JSON object, or has NaN or text that is not valid Unicode.
    """
    try:
        fields = json.loads(body, parse_constant=_no_number)
        # JSON escapes can spell lone surrogates, which UTF-8 and tokenizers do not take.
        json.dumps(fields, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Refused(400, "the body is JSON but not an object with the fields of a request")
    return fields


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
