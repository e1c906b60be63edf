"""Seeds from seeds: the same in every process, on every machine, in every year."""

from __future__ import annotations

import hashlib

_BYTES = 8


def stable_seed(*parts: int | str) -> int:
    """A number from 0 to 2^62 - 1 that depends on the parts and their order.

    Python's own `hash` differs between processes. Two bits are free, so that a caller may add a
    small number without leaving a signed 64-bit integer.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=_BYTES)
    return int.from_bytes(digest.digest(), "big") >> 2
