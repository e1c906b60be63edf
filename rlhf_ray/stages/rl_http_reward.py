"""The service behind `reward.url`: asked for its health before any worker starts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rlhf_ray.config.bearer_token import service_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig
from rlhf_ray.rewards.http_client import CallFailed
from rlhf_ray.rewards.http_scorer import ask_health

# What a service may say of itself, beside its status.
_SAID = ("model", "fingerprint")


def check_service(reward: RewardConfig, *, report: Callable[[str], None]) -> None:
    """Refuse a service that does not answer; nothing without `reward.url`.

    One that is starting is waited for, as long as `reward.http` allows.

    Args:
        report: takes lines for people.

    Raises:
        RequestError: what it answered, or why it did not.
    """
    if reward.url is None:
        return
    try:
        said = asyncio.run(ask_health(reward.url, reward.http, service_token(reward)))
    except CallFailed as failed:
        hint = (
            "; the token is wrong, or reward.http.token_variable names none"
            if failed.status in (401, 403)
            else "; start the service before the run, or mend reward.url"
        )
        raise RequestError(f"reward.url={reward.url}: {failed}{hint}") from failed
    words = ", ".join(f"{name} {said[name]}" for name in _SAID if name in said)
    report(f"the service at {reward.url} answers{': ' + words if words else ''}")
