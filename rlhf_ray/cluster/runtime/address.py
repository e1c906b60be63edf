"""The check of Ray's environment variables, before anything starts. Imports no Ray."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from rlhf_ray.config.errors import RequestError

# Of a connection to the head node.
_CONNECT_S = 10.0
# Ray's own modes (2.60, AuthenticationMode). It takes every other value for `disabled`.
_MODES = ("token", "disabled")
_CURRENT_CLUSTER = "ray_current_cluster"


def check_ray_environment() -> None:
    """See that the cluster of RAY_ADDRESS is there, and that RAY_AUTH_MODE means something.

    Raises:
        RequestError: says which variable is wrong.
    """
    check_auth_mode()
    address = joined_address()
    if address is not None:
        check_reachable(address)


def check_auth_mode() -> None:
    """See that RAY_AUTH_MODE is one of Ray's modes.

    Raises:
        RequestError: it is not; Ray would run without authentication, and say nothing.
    """
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is not None and mode.lower() not in _MODES:
        raise RequestError(
            f"RAY_AUTH_MODE={mode!r} is not a mode of Ray, which would run without authentication: "
            f"set it to token or disabled, or unset it"
        )


def is_open() -> bool:
    """Whether Ray's authentication is switched off."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"


def joined_address() -> str | None:
    """Host and port of the cluster that RAY_ADDRESS names; None starts a local Ray.

    Raises:
        RequestError: it names none.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address in ("", "local"):
        return None
    if address == "auto":
        return _current_cluster()
    if "://" in address:
        raise RequestError(
            f"RAY_ADDRESS={address}: a run is a driver on the cluster and joins it at host:port of "
            f"the head node (the GCS, usually port 6379). To send a run from outside, use "
            f"`ray job submit` (launch/submit.sh, RAY_API_SERVER_ADDRESS); for a Ray on this "
            f"machine unset RAY_ADDRESS"
        )
    _host_and_port(address)
    return address


def check_reachable(address: str) -> None:
    """See that something listens at the address.

    Raises:
        RequestError: the connection was refused, or not made in time.
    """
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise RequestError(
            f"RAY_ADDRESS={os.environ.get('RAY_ADDRESS', address)}: no Ray cluster at {address} "
            f"({reason}, within {_CONNECT_S:g} s). Start it (`ray start --head`), correct the "
            f"address, or unset RAY_ADDRESS for a Ray on this machine"
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise RequestError(
            f"RAY_ADDRESS={address!r}: must be host:port of the cluster's head node, such as "
            f"10.0.0.1:6379, or unset for a Ray on this machine"
        )
    return host.strip("[]"), int(port)


def _current_cluster() -> str:
    """Address of the cluster that `ray start` has left on this machine."""
    folder = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"
    try:
        address = (folder / _CURRENT_CLUSTER).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise RequestError(
            f"RAY_ADDRESS=auto: no cluster was started on this machine ({folder} has no "
            f"{_CURRENT_CLUSTER}); `ray start` starts one, and without RAY_ADDRESS the run starts "
            f"its own"
        ) from None
    _host_and_port(address)
    return address
