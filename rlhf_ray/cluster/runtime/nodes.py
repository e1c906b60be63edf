"""Nodes that were lost while a run had workers on them: found at once, and put into words."""

from __future__ import annotations

import socket
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

# A raylet answers a connection in milliseconds; a lost packet is sent again after 1 s and 3 s.
_CONNECT_S = 5.0
_MAX_AT_ONCE = 64
_NUM_NAMES = 12
_GO_ON = (
    "See whether it is on, has a network and had memory to spare. Start Ray on it again, or on "
    "another node in its place, and start the run again: resume=auto goes on from the last "
    "checkpoint"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LostNode:
    """A node without which the run cannot go on.

    Attributes:
        node_id: Ray's.
        name: address, with the host name if Ray knows another one.
        reason: how it is known to be lost, and since when if that is known.
    """

    node_id: str
    name: str
    reason: str


def lost_nodes(node_ids: Collection[str]) -> list[LostNode]:
    """The lost ones among these nodes, in the order of their addresses.

    Ray declares a node dead when its raylet has left some calls of the GCS without an answer, by
    default after half a minute to a minute. A worker there may fail before. So each raylet that Ray
    takes for alive is asked for a connection, all at once; this takes 5 s at most.
    """
    try:
        rows = [row for row in ray.nodes() if row["NodeID"] in node_ids]
    except RayError:  # The GCS: the watch over Ray's own processes reports it.
        return []
    alive = [row for row in rows if row["Alive"]]
    with ThreadPoolExecutor(max_workers=_MAX_AT_ONCE) as pool:
        answers = list(pool.map(_refusal, alive))
    reasons = {row["NodeID"]: answer for row, answer in zip(alive, answers, strict=True) if answer}
    reasons |= {row["NodeID"]: _death(row) for row in rows if not row["Alive"]}
    found = [
        LostNode(node_id=row["NodeID"], name=_name(row), reason=reasons[row["NodeID"]])
        for row in rows
        if row["NodeID"] in reasons
    ]
    return sorted(found, key=lambda node: node.name)


def lost_words(
    lost: Collection[LostNode], workers: Mapping[str, Collection[str]]
) -> tuple[str, str]:
    """The loss in words: what happened, and its reason with what to do.

    Args:
        workers: names of the workers of the run, by node id.
    """
    names = " and ".join(node.name for node in lost)
    what = f"node {names} was lost" if len(lost) == 1 else f"nodes {names} were lost"
    reasons = "; ".join(
        f"{node.name} ran {_listed(workers.get(node.node_id, ()))} ({node.reason})" for node in lost
    )
    return what, f"{reasons}. {_GO_ON}"


def _refusal(row: Mapping[str, Any]) -> str | None:
    """The reason why no connection to the raylet of a node can be made; None if one can."""
    address = (row["NodeManagerAddress"], row["NodeManagerPort"])
    try:
        socket.create_connection(address, timeout=_CONNECT_S).close()
    except OSError as error:
        is_late = isinstance(error, TimeoutError)
        words = f"no answer within {_CONNECT_S:g} s" if is_late else error.strerror or str(error)
        return f"its raylet at {address[0]}:{address[1]} cannot be reached: {words}"
    return None


def _death(row: Mapping[str, Any]) -> str:
    return f"Ray: {row.get('DeathReasonMessage') or 'dead, without a reason'}"


def _name(row: Mapping[str, Any]) -> str:
    address, host = row["NodeManagerAddress"], row["NodeManagerHostname"]
    return address if host in ("", address) else f"{address} ({host})"


def _listed(names: Collection[str]) -> str:
    shown = sorted(names)[:_NUM_NAMES]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
