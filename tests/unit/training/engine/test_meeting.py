"""The store where ranks meet listens at their address alone, and not at all for one rank."""

from __future__ import annotations

import socket
import threading
from datetime import timedelta

import psutil
import pytest
from torch.distributed import Store, TCPStore

from rlhf_ray.training.engine.meeting import meeting_store

TIMEOUT = timedelta(seconds=30)


def listening() -> set[tuple[str, int]]:
    return {
        (connection.laddr.ip, connection.laddr.port)
        for connection in psutil.Process().net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_rank_alone_opens_no_port():
    before = listening()
    store = meeting_store(0, 1, "127.0.0.1", free_port(), timeout=TIMEOUT)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert listening() == before


def test_two_ranks_meet_at_the_address_of_rank_0_and_nowhere_else():
    before, port = listening(), free_port()
    stores: dict[int, TCPStore] = {}

    def join(rank: int) -> None:
        stores[rank] = meeting_store(rank, 2, "127.0.0.1", port, timeout=TIMEOUT)  # type: ignore[assignment]

    threads = [threading.Thread(target=join, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stores[0].set("key", "value")
    assert stores[1].get("key") == b"value"
    assert listening() - before == {("127.0.0.1", port)}


def test_a_taken_port_is_an_error_and_not_another_store():
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(OSError, match="in use"),
    ):
        meeting_store(0, 2, "127.0.0.1", server.getsockname()[1], timeout=TIMEOUT)


def test_the_port_is_held_until_the_ranks_meet():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with pytest.raises(OSError, match="in use"), socket.create_server(("127.0.0.1", port)):
        pass
    stores: list[Store] = []
    other = threading.Thread(
        target=lambda: stores.append(meeting_store(1, 2, "127.0.0.1", port, timeout=TIMEOUT))
    )
    other.start()
    stores.append(meeting_store(0, 2, "127.0.0.1", port, timeout=TIMEOUT, listener=listener))
    other.join(60)
    stores[0].set("key", "value")
    assert stores[1].get("key") == b"value"


def test_a_rank_alone_gives_the_port_back():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    meeting_store(0, 1, "127.0.0.1", port, timeout=TIMEOUT, listener=listener)
    socket.create_server(("127.0.0.1", port)).close()
