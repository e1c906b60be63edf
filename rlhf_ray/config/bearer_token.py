"""Bearer tokens: in the environment and in memory, never in a file or a message."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass, field

from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.reward import RewardConfig


@dataclass(frozen=True, slots=True)
class BearerToken:
    """A token that does not show itself."""

    secret: str = field(repr=False)

    @property
    def header(self) -> str:
        """Value of the header Authorization."""
        return f"Bearer {self.secret}"

    def admits(self, header: str) -> bool:
        """Whether a request with this header may pass; the time it takes does not tell how near
        it was."""
        return hmac.compare_digest(header.encode(), self.header.encode())


def read_token(key: str, variable: str | None) -> BearerToken | None:
    """The token in the environment variable that `key` names; None where it names none.

    Raises:
        RequestError: the variable is not set, or holds what no header can.
    """
    if variable is None:
        return None
    secret = os.environ.get(variable, "").strip()
    if not secret:
        raise RequestError(
            f"{key}={variable}: the environment has no such variable, or it is empty; set it to "
            f"the token where the command is started"
        )
    if not (secret.isascii() and secret.isprintable() and " " not in secret):
        raise RequestError(
            f"{key}={variable}: the token in it has characters that no header can have; it must "
            f"be printable ASCII without spaces"
        )
    return BearerToken(secret)


def service_token(reward: RewardConfig) -> BearerToken | None:
    """What the service at `reward.url` wants.

    Raises:
        RequestError: `reward.http.token_variable` names a variable that is not set.
    """
    if reward.url is None:
        return None
    return read_token("reward.http.token_variable", reward.http.token_variable)
