"""HTTP client of a scoring service, with time limits and retries."""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.reward import HttpRewardConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.http.messages import shown

_LONGEST_WAIT_S = 30.0
_MAX_REPLY_BYTES = 16 * 1024 * 1024
# Statuses below 500 that mean "try again".
_TRY_AGAIN = (408, 425, 429)


class CallFailed(Exception):  # noqa: N818 - as its neighbours, it reads as a sentence
    """A call failed for good: another try would not help, or no tries are left.

    Attributes:
        status: HTTP status of the last reply; None without a reply.
    """

    def __init__(self, kind: FailureKind, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class _Passing(Exception):  # noqa: N818
    """A failure that may be over at the next try.

    Attributes:
        status: HTTP status of the reply; None without a reply.
        wait_s: time that the service asks to wait, or None.
    """

    def __init__(self, message: str, status: int | None, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s


class HttpClient:
    """Calls one service. All methods belong to one event loop.

    Args:
        url: base URL; the paths of calls are appended.
        token: bearer token sent with every call, or None.
    """

    def __init__(self, url: str, settings: HttpRewardConfig, token: BearerToken | None) -> None:
        self._url = url.rstrip("/")
        self._settings = settings
        self._headers = {"Authorization": token.header} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """Call the service, with retries as the settings allow; returns the body of the reply.

        Raises:
            CallFailed: the service refused the call, or the tries or the time were used up.
        """
        settings = self._settings
        deadline = time.monotonic() + settings.deadline_s
        last: _Passing | None = None
        try:
            async with asyncio.timeout(settings.deadline_s):
                for number in range(settings.max_retries + 1):
                    try:
                        return await self._try(method, path, body)
                    except _Passing as passing:
                        last = passing
                    if number < settings.max_retries:
                        await asyncio.sleep(self._wait_s(last, number, deadline))
        except TimeoutError:
            cause = f"; before that: {last}" if last else ""
            raise CallFailed(
                FailureKind.REWARD_TIMEOUT,
                f"{self._url}{path} gave nothing within reward.http.deadline_s="
                f"{settings.deadline_s:g}{cause}",
                last.status if last else None,
            ) from None
        assert last is not None, "a try either returns or raises"
        raise CallFailed(
            FailureKind.REWARD_ERROR,
            f"{self._url}{path}: {last}, also after {settings.max_retries} retries",
            last.status,
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _try(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        url = f"{self._url}{path}"
        try:
            async with self._open().request(
                method, url, json=body, headers=self._headers, allow_redirects=False
            ) as response:
                content = await _read(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            words = str(error) or type(error).__name__
            raise _Passing(f"no reply ({words})", status=None) from error
        status = response.status
        if 200 <= status < 300:
            return content
        message = f"status {status}: {_reason(content)}"
        if status in _TRY_AGAIN or status >= 500:
            wait_s = _retry_after_s(response.headers.get("Retry-After"))
            raise _Passing(message, status, wait_s)
        raise CallFailed(FailureKind.REWARD_ERROR, f"{url}: {message}", status)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            settings = self._settings
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=settings.connect_s,
                    sock_connect=settings.connect_s,
                    sock_read=settings.read_s,
                )
            )
        return self._session

    def _wait_s(self, passing: _Passing, number: int, deadline: float) -> float:
        left_s = deadline - time.monotonic()
        if passing.wait_s is not None and passing.wait_s > left_s:
            raise CallFailed(
                FailureKind.REWARD_ERROR,
                f"{self._url}: {passing}; the service asks to wait {passing.wait_s:g} s, "
                f"and of reward.http.deadline_s={self._settings.deadline_s:g} only {left_s:.1f} s "
                f"are left",
                passing.status,
            )
        if passing.wait_s is not None:
            return passing.wait_s
        longest = min(self._settings.first_wait_s * 2**number, _LONGEST_WAIT_S)
        # Jitter, so that calls that failed together do not all retry at the same moment.
        return longest * random.uniform(0.5, 1.0)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    pieces = bytearray()
    async for piece in response.content.iter_any():
        pieces += piece
        if len(pieces) > _MAX_REPLY_BYTES:
            raise CallFailed(
                FailureKind.REWARD_ERROR,
                f"{response.url}: the reply is longer than {_MAX_REPLY_BYTES:,} bytes",
                response.status,
            )
    return bytes(pieces)


def _reason(content: bytes) -> str:
    """The service's message about an error: a field of its JSON, or the text of the reply."""
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError):
        return shown(content)
    for name in ("error", "detail", "message"):
        if isinstance(reply, dict) and isinstance(reply.get(name), str):
            return shown(reply[name].encode())
    return shown(content)


def _retry_after_s(value: str | None) -> float | None:
    """Seconds in a Retry-After header, which holds a number or a date; None if it is unreadable."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(date.timestamp() - time.time(), 0.0)
