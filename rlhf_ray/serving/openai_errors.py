"""Errors in the format of OpenAI's API, which its clients understand."""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

# Value of the Retry-After header while no replica can answer.
RETRY_AFTER_S = 2

_TYPES = {
    400: "BadRequestError",
    401: "AuthenticationError",
    403: "PermissionDeniedError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    408: "RequestTimeoutError",
    413: "RequestTooLargeError",
    415: "UnsupportedMediaTypeError",
    502: "BadGatewayError",
    503: "ServiceUnavailableError",
    504: "GatewayTimeoutError",
}


class Refused(Exception):  # noqa: N818 - it reads as a sentence
    """A request that is answered with an error.

    Attributes:
        status: HTTP status of the reply.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def error_body(status: int, message: str) -> dict[str, Any]:
    """The JSON of an error."""
    kind = _TYPES.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def error_event(status: int, message: str) -> bytes:
    """The last event of a stream that failed after its begin."""
    return f"data: {json.dumps(error_body(status, message))}\n\n".encode()


def error_reply(status: int, message: str) -> Response:
    """The error as a complete reply."""
    reply = JSONResponse(error_body(status, message), status_code=status)
    if status == 401:
        reply.headers["WWW-Authenticate"] = "Bearer"
    if status == 503:
        reply.headers["Retry-After"] = str(RETRY_AFTER_S)
    return reply


async def as_openai_error(_: Request, error: Exception) -> Response:
    """Exception handler for Starlette: turn an exception into a reply."""
    if isinstance(error, Refused):
        return error_reply(error.status, str(error))
    if isinstance(error, HTTPException):
        return error_reply(error.status_code, error.detail)
    return error_reply(500, f"{type(error).__name__}: {error}")
