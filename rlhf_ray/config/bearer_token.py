"""Bearer tokens, kept in the environment and in memory, never in a file or a message."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A bearer token, hidden in its repr."""

    secret: str = field(repr=False)

    @property
    def header(self) -> str:
        """Value of the Authorization header."""
        return f"Bearer {self.secret}"

    def admits(self, header: str) -> bool:
        """Whether a request with this header may pass, compared in constant time."""
        return hmac.compare_digest(header.encode(), self.header.encode())


def read_token(key: str, variable: str | None) -> BearerToken | None:
    """Read the token from the environment variable named by `key`; None without a variable.

    Raises:
        RequestError: the variable is not set, or its value cannot be sent in a header.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise RequestError(
            f"{key}={variable}: this environment variable is not set, or it is empty; set it to "
            f"the token before starting the command"
        )
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise RequestError(
            f"{key}={variable}: this environment variable has characters that a header cannot "
            f"carry; use printable ASCII without spaces"
        )
    return BearerToken(secret)


def service_token(reward: RewardConfig) -> BearerToken | None:
    """Read the token for the service at `reward.url`; None without a service or a token.

    Raises:
        RequestError: `reward.http.token_variable` names a variable that is not set.
    """
    if reward.url is None:
        return None
    return read_token("reward.http.token_variable", reward.http.token_variable)
