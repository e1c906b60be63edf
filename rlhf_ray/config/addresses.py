"""Checks of service addresses."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit


def address_problems(key: str, url: str, *, token_key: str) -> Iterator[str]:
    """Check the address of a service, to which paths are appended; yields every problem.

    Args:
        key: configuration key of the address, for the message.
        token_key: configuration key for a token, which does not belong in the address.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        yield (
            f"{key}={url}: is not the address of a service; write http://HOST:PORT or "
            f"https://HOST/PATH"
        )
    elif parts.username is not None or parts.password is not None:
        # The address is not shown: a password would go to the log, as it would to config.yaml.
        yield (
            f"{key}: has a user or a password, which would be written to config.yaml; put a "
            f"token into an environment variable and name the variable in {token_key}"
        )
    elif parts.query or parts.fragment:
        yield (
            f"{key}={url}: has a query or a fragment, but paths are appended to it; remove query "
            f"and fragment"
        )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
