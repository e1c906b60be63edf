"""Addresses of services."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit


def address_problems(key: str, url: str, *, token_key: str) -> Iterator[str]:
    """What is wrong with the address of a service behind which paths are put.

    Args:
        key: of the configuration, for the message.
        token_key: where a token goes instead.
    """
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        yield (
            f"{key}={url}: is not the address of a service; write http://HOST:PORT or "
            f"https://HOST/PATH"
        )
    elif parts.username is not None or parts.password is not None:
        # Not shown: it would be in the log, as it would be in config.yaml.
        yield (
            f"{key}: has a user or a password in it, which would be written to config.yaml; "
            f"put a token into an environment variable and name that in {token_key}"
        )
    elif parts.query or parts.fragment:
        yield (
            f"{key}={url}: has a query or a fragment, and paths are put behind it; write what "
            f"comes before them"
        )


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts
