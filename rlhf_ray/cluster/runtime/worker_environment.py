"""The environment of workers, and the network interface through which they meet. Knows no Ray."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from rlhf_ray.config.groups.runtime import PlacementConfig

_INTERFACE = "RLHF_RAY_NETWORK_INTERFACE"


def worker_environment(placement: PlacementConfig) -> dict[str, str]:
    """Variables of every worker; those of `placement.env_from_driver` as they are here and now."""
    variables = dict(placement.env)
    # A rule has refused names without a value.
    variables |= {name: os.environ[name] for name in placement.env_from_driver}
    if interface := placement.network_interface:
        # NCCL takes names as the beginnings of names, except after "=".
        variables |= {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface}
        variables[_INTERFACE] = interface
    return variables


def chosen_address(environment: Mapping[str, str]) -> str | None:
    """This node's address on the chosen interface; None if none was chosen.

    Raises:
        ValueError: this node has no such interface, or no address there.
    """
    interface = environment.get(_INTERFACE)
    if interface is None:
        return None
    import psutil

    found = psutil.net_if_addrs()
    addresses = {entry.family: entry.address for entry in found.get(interface, ())}
    for family in (socket.AF_INET, socket.AF_INET6):
        if family in addresses:
            return addresses[family]
    raise ValueError(
        f"placement.network_interface={interface}: {socket.gethostname()} has "
        f"{'no address on it' if interface in found else 'no such interface'}; it has "
        f"{', '.join(sorted(found))}. Name one that every node has"
    )
