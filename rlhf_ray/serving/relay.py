"""Relay of one request to a replica, and of the answer back to the client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.openai_errors import Refused, error_event, error_reply
from rlhf_ray.serving.replica import Replica

# nginx's status for a client that went away; it is only counted, never sent.
CLIENT_GONE = 499
_EVENT_STREAM = "text/event-stream"
_LAST_EVENT = b"data: [DONE]"
# Begin of an event with which vLLM says that it failed in mid-stream. Text of an answer is quoted
# in JSON, and cannot look like it.
_ERROR_EVENT = b'data: {"error"'
_OF_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
]
_LOST = "the engine ended while it answered; ask again"

# Called with the HTTP status of a request that has ended.
Count = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that was checked.

    Attributes:
        path: path at the replica.
        body: body of a POST; None for a GET.
        num_answers: answers that it asks for.
        constraint: name of the field that constrains the answer by a grammar; None if none does.
    """

    path: str
    body: bytes | None = None
    num_answers: int = 1
    constraint: str | None = None


class _Unreached(Exception):  # noqa: N818 - it reads as a sentence
    """The replica could not be reached: it has seen nothing of the request."""


class Relayed(Response):
    """The answer of a replica, passed on as it comes.

    If the client goes away, the connection to the replica is closed, and the replica stops
    generating. If the replica fails, the client gets 502; if the answer has begun, it gets an event
    with the error, and the connection breaks off.

    Args:
        asked: the request.
        count: called with the status, also of an answer that failed in mid-stream.
        timeout_s: longest time of the answer, with its wait.
    """

    def __init__(self, fleet: Fleet, asked: Asked, count: Count, *, timeout_s: float) -> None:
        super().__init__()
        self._fleet = fleet
        self._asked = asked
        self._count = count
        self._timeout_s = timeout_s
        # Status of a stream whose last event is sent: a client may leave before the body ends.
        self._sent: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The answer, and a watch for the client's disconnect, at the same time: without it a
        # client that goes away before the first token is noticed only at the first write.
        work = asyncio.create_task(self._answer_in_time(scope, receive, send))
        gone = asyncio.create_task(_until_gone(receive))
        # The status also if this is cancelled: Ray Serve does so when the client has gone.
        status = CLIENT_GONE
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                status = work.result()
            elif self._sent is not None:
                status = self._sent
        finally:
            self._count(status)
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer_in_time(self, scope: Scope, receive: Receive, send: Send) -> int:
        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._answer(scope, receive, noted)
        except TimeoutError:
            late = f"the answer took longer than serve.limits.answer_s={self._timeout_s:g} s"
            if has_begun:
                await _send(send, error_event(504, late))
            else:
                await error_reply(504, late)(scope, receive, send)
            return 504

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Answer, and return the status.

        A replica that cannot be reached has not begun to answer, so the request goes to the next
        one. A replica that fails later may have: the client must decide whether to ask again.
        """
        gone: list[Replica] = []
        while True:
            try:
                replica = self._fleet.next_replica(self._asked.num_answers, besides=gone)
            except Refused as refused:
                await error_reply(refused.status, str(refused))(scope, receive, send)
                return refused.status
            try:
                return await self._from(replica, scope, receive, send)
            except _Unreached:
                gone.append(replica)

    async def _from(self, replica: Replica, scope: Scope, receive: Receive, send: Send) -> int:
        with replica.asked(self._asked.num_answers) as session:
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
                    return await self._stream(reply, replica, send)
                return await self._whole(reply, replica, scope, receive, send)
            finally:
                # `close`, not `release`: an answer that is not read to its end is given up, and the
                # closed connection tells the server to stop generating.
                reply.close()

    async def _ask(self, session: aiohttp.ClientSession) -> aiohttp.ClientResponse:
        asked = self._asked
        if asked.body is None:
            return await session.get(asked.path)
        headers = {"Content-Type": "application/json"}
        return await session.post(asked.path, data=asked.body, headers=headers)

    async def _whole(
        self,
        reply: aiohttp.ClientResponse,
        replica: Replica,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> int:
        """Pass on a complete answer; returns the status."""
        status = reply.status
        try:
            content = await reply.read()
        except (aiohttp.ClientError, OSError):
            replica.suspect()
            await error_reply(502, f"the engine failed: {_LOST}")(scope, receive, send)
            return 502
        # The client's own errors (4xx) are the engine's to explain; a 5xx may mean a broken engine.
        if status < 500:
            answer = Response(content, status_code=status, media_type=reply.content_type)
        else:
            status, words = await self._failure(replica, _message_in(content))
            answer = error_reply(status, words)
        await answer(scope, receive, send)
        return status

    async def _failure(self, replica: Replica, message: str) -> tuple[int, str]:
        """Status and message for a failure of the engine.

        vLLM 0.32 compiles a grammar inside the engine, and answers one that does not compile with
        500. Such an engine is healthy, and the request is at fault.
        """
        constraint = self._asked.constraint
        if constraint is not None and await replica.is_healthy():
            return 400, (
                f"the engine cannot follow {constraint} of the request: {message}; the grammar or "
                f"schema may be wrong or too large"
            )
        replica.suspect()
        return 502, f"the engine failed: {message}"

    async def _stream(self, reply: aiohttp.ClientResponse, replica: Replica, send: Send) -> int:
        """Pass on a stream of events; returns the status.

        Only whole events are sent, so that the error event never lands inside another one.
        """
        await send({"type": "http.response.start", "status": reply.status, "headers": _OF_STREAM})
        status, rest, is_complete = reply.status, b"", False
        try:
            async for piece in reply.content.iter_any():
                whole, end, rest = (rest + piece).rpartition(b"\n\n")
                if _ERROR_EVENT in whole:
                    whole, status = await self._with_failure(whole, replica)
                if end:
                    await _send(send, whole + end)
                # A stream that ends without its last event was cut off, even if the connection
                # closed in order.
                if whole.endswith(_LAST_EVENT):
                    is_complete, self._sent = True, status
        except (aiohttp.ClientError, OSError):
            is_complete = False
        if is_complete:
            await send({"type": "http.response.body", "body": b""})
            return status
        replica.suspect()
        # The body gets no end, so that the HTTP server breaks the connection off: a client that
        # does not read the error event still sees that the answer is incomplete.
        await _send(send, error_event(502, _LOST))
        return 502

    async def _with_failure(self, events: bytes, replica: Replica) -> tuple[bytes, int]:
        """Events in which a failure of the engine is explained, and the status of the answer."""
        found, status = events.split(b"\n\n"), 200
        for index, event in enumerate(found):
            if event.startswith(_ERROR_EVENT):
                content = event.removeprefix(b"data: ")
                if _code_in(content) >= 500:
                    status, words = await self._failure(replica, _message_in(content))
                    found[index] = error_event(status, words).rstrip(b"\n")
        return b"\n\n".join(found), status


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue


def _message_in(content: bytes) -> str:
    """Message in an engine's error reply."""
    try:
        return str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return content.decode(errors="replace")[:500]


def _code_in(content: bytes) -> int:
    """Status in an engine's error; 500 if there is none."""
    try:
        return int(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 500
