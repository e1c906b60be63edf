"""One request on its way to a replica, and the answer on its way back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.openai_errors import Refused, error_event, error_reply
from rlhf_ray.serving.replica import Replica

# What nginx calls a request whose client went away; it is counted and sent to nobody.
CLIENT_GONE = 499
_EVENT_STREAM = "text/event-stream"
_LAST_EVENT = b"data: [DONE]"
_LOST = "the engine ended while it answered; ask again"

# Is told the HTTP status that a request ended with.
Count = Callable[[int], None]


class _Unreached(Exception):  # noqa: N818 - it reads as a sentence
    """The replica was gone before it had the request."""


class Relayed(Response):
    """The answer of a replica, as it comes.

    A client that goes away ends the connection to the replica, which then stops generating. A
    replica that fails gives 502; where the answer has begun, an event with the error and a
    connection that breaks off.

    Args:
        path: at the replica.
        body: of a POST; None asks with GET.
        count: is told the status, also of what failed in mid-stream.
    """

    def __init__(self, fleet: Fleet, path: str, body: bytes | None, count: Count) -> None:
        super().__init__()
        self._fleet = fleet
        self._path = path
        self._body_sent = body
        self._count = count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_until_gone(receive))
        status = CLIENT_GONE  # So it is, too, where Ray Serve cancels this for the client.
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                status = work.result()
        finally:
            self._count(status)
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer; returns the status. One replica after the other, until one has the request."""
        gone: list[Replica] = []
        while True:
            try:
                replica = self._fleet.next_replica(besides=gone)
            except Refused as refused:
                await error_reply(refused.status, str(refused))(scope, receive, send)
                return refused.status
            try:
                return await self._from(replica, scope, receive, send)
            except _Unreached:
                gone.append(replica)

    async def _from(self, replica: Replica, scope: Scope, receive: Receive, send: Send) -> int:
        with replica.asked() as session:
            try:
                reply = await self._ask(session)
            except aiohttp.ClientConnectorError as error:
                replica.suspect()
                raise _Unreached from error
            except (aiohttp.ClientError, OSError):
                replica.suspect()
                await error_reply(502, _LOST)(scope, receive, send)
                return 502
            try:
                if reply.content_type == _EVENT_STREAM:
                    return await _stream(reply, replica, send)
                return await _whole(reply, replica, scope, receive, send)
            finally:
                # Also the connection: what is not read to its end is not wanted any more.
                reply.close()

    async def _ask(self, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        if self._body_sent is None:
            return await session.get(self._path)
        headers = {"Content-Type": "application/json"}
        return await session.post(self._path, data=self._body_sent, headers=headers)


async def _whole(
    reply: aiohttp.ClientResponse, replica: Replica, scope: Scope, receive: Receive, send: Send
) -> int:
    status = reply.status
    try:
        content = await reply.read()
    except (aiohttp.ClientError, OSError):
        content, status = _LOST.encode(), 502
    if status < 500:
        answer = Response(content, status_code=status, media_type=reply.content_type)
    else:
        replica.suspect()
        status = 502
        answer = error_reply(502, f"the engine failed: {_message_in(content)}")
    await answer(scope, receive, send)
    return status


async def _stream(reply: aiohttp.ClientResponse, replica: Replica, send: Send) -> int:
    """Whole events, one after the other; returns the status."""
    headers = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    rest, is_complete = b"", False
    try:
        async for piece in reply.content.iter_any():
            whole, end, rest = (rest + piece).rpartition(b"\n\n")
            if end:
                await _send(send, whole + end)
            is_complete = is_complete or whole.endswith(_LAST_EVENT)
    except (aiohttp.ClientError, OSError):
        is_complete = False
    if is_complete:
        await send({"type": "http.response.body", "body": b""})
        return reply.status
    replica.suspect()
    # And no end of the body: the server breaks the connection off, which no client can miss.
    await _send(send, error_event(502, _LOST))
    return 502


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _message_in(content: bytes) -> str:
    """What an error of the engine says."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")[:500]
