"""Scorer that asks a service over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.reward import HttpRewardConfig, ScorerPart
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.rewards.http.client import CallFailed, HttpClient
from rlhf_ray.rewards.http.messages import BadReply, read_reply, request_of
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome


class HttpScorer:
    """An `AsyncGroupScorer` that asks a service, once for each group.

    Args:
        url: base URL of the service.
        token: bearer token of the service, or None.
    """

    def __init__(self, *, url: str, http: HttpRewardConfig, token: BearerToken | None) -> None:
        self._settings = http
        self._client = HttpClient(url, http, token)
        self._turns = asyncio.Semaphore(http.max_in_flight)

    @property
    def part(self) -> ScorerPart:
        settings = self._settings
        return ScorerPart(group="reward.http", name=settings.name, weight=settings.weight)

    async def score(self, group: RolloutGroup) -> Sequence[Outcome]:
        """See `AsyncGroupScorer.score`. A failed call or a bad reply is the samples' failure."""
        try:
            async with self._turns:
                body = await self._client.call("POST", "/score", request_of(group))
            return read_reply(body, group.num_samples)
        except CallFailed as failed:
            kind, message = failed.kind, str(failed)
        except BadReply as bad:
            kind, message = FailureKind.REWARD_ERROR, str(bad)
        return [ItemFailure(kind=kind, message=message)] * group.num_samples

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


async def ask_health(url: str, http: HttpRewardConfig, token: BearerToken | None) -> dict[str, Any]:
    """Ask a service for its description; empty if it is healthy and gives none.

    Raises:
        CallFailed: the service does not answer, or answers with an error.
    """
    client = HttpClient(url, http, token)
    try:
        body = await client.call("GET", "/health")
    finally:
        await client.close()
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return reply if isinstance(reply, dict) else {}
