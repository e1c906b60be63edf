"""Arrival of a request: its body within limits, and whether it may come from a web page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rlhf_ray.config.groups.deploy import LOCAL_HOSTS
from rlhf_ray.serving.openai_errors import Refused

_JSON = "application/json"

ErrorReply = Callable[[int, str], Response]


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the body up to its end or a limit.

    The limit is checked while reading: the length that a client announces may be wrong.

    Raises:
        Refused: 413, the body is too long; 408, it did not come in time.
        ClientDisconnect: the client has gone.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in request.stream():
                body += piece
                if len(body) > max_bytes:
                    raise Refused(
                        413,
                        f"the request is longer than serve.max_request_bytes={max_bytes:,}; send "
                        f"it in parts",
                    )
    except TimeoutError:
        raise Refused(
            408, f"the request did not come within serve.limits.client_s={timeout_s:g} s"
        ) from None
    return bytes(body)


class OwnRequests:
    """Middleware for a service without a key: no web page may ask it.

    A page that a browser of this machine shows may send requests to its services. The browser asks
    first only where the content is JSON, and the service then gives no permission. A page whose
    name is made to point to this machine (DNS rebinding) is seen by its name in `Host`.

    Args:
        hosts: names of the service; the port does not matter.
        error_reply: makes an error in the service's format.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], error_reply: ErrorReply) -> None:
        self._app = app
        self._hosts = {name.lower() for name in (*LOCAL_HOSTS, *hosts)}
        self._error_reply = error_reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if _name_in(host) not in self._hosts:
            return self._error_reply(
                403,
                f"the header Host is {host[:100]!r}; without serve.token_variable only "
                f"{', '.join(sorted(self._hosts))} are answered",
            )
        given = request.headers.get("content-type", "")
        if request.method == "POST" and given.partition(";")[0].strip().lower() != _JSON:
            return self._error_reply(
                415,
                f"the header Content-Type is {given[:100]!r}; without serve.token_variable it "
                f"must be {_JSON}",
            )
        return None


def _name_in(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
