"""The meeting of the ranks of a model: the store through which they find each other."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch.distributed import HashStore, Store, TCPStore, distributed_c10d


@dataclass(frozen=True, kw_only=True, slots=True)
class Meeting:
    """The start of the ranks of a model.

    Attributes:
        listener: socket of rank 0, bound to the address at which the ranks meet; None to bind it
            when they meet. Its port cannot be taken by another process in between.
        timeout_s: of collective operations during the start, which wait for the slowest rank to
            load its model; None for the limit of later ones.
    """

    listener: socket.socket | None = None
    timeout_s: float | None = None


def meet(
    backend: str,
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
    *,
    timeout: timedelta,
    listener: socket.socket | None = None,
) -> None:
    """Make the default process group of torch; see `meeting_store` for arguments and errors."""
    store = meeting_store(
        rank, world_size, master_addr, master_port, timeout=timeout, listener=listener
    )
    torch.distributed.init_process_group(
        backend,
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        # As DeepSpeed would: NCCL connects the ranks now, and a rank alone has no peer.
        device_id=torch.device("cuda", 0) if backend == "nccl" and world_size > 1 else None,
    )


def limit_collectives(timeout_s: float) -> None:
    """Set the longest wait of collective operations from here on, in every group of this rank.

    DeepSpeed makes groups of its own while it builds an engine.
    """
    for group in list(distributed_c10d._world.pg_map):
        # There is no public function; torch 2.13 has this one "when users want to use a different
        # timeout".
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def meeting_store(
    rank: int,
    world_size: int,
    master_addr: str,
    master_port: int,
    *,
    timeout: timedelta,
    listener: socket.socket | None = None,
) -> Store:
    """A store for `init_process_group`, served by rank 0.

    torch's own store has no authentication and listens on every interface of the node. Here rank 0
    binds it to the address at which the ranks meet: 127.0.0.1 in a local run, the node's address in
    a cluster. A rank alone needs no port.

    Args:
        master_addr, master_port: address of rank 0.
        timeout: for the ranks to come.
        listener: rank 0's socket at that address, which this function takes over; None binds one.

    Raises:
        OSError: the port is taken, or the address is not of this node.
        torch.distributed.DistStoreError: not all ranks came in time.
    """
    if world_size == 1:
        if listener:
            listener.close()
        return HashStore()
    if rank > 0:
        return TCPStore(master_addr, master_port, world_size, is_master=False, timeout=timeout)
    if listener is None:
        family, *_, where = socket.getaddrinfo(master_addr, master_port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
    listener.listen(world_size)
    # The store owns the descriptor from here on.
    return TCPStore(
        master_addr,
        master_port,
        world_size,
        is_master=True,
        timeout=timeout,
        master_listen_fd=listener.detach(),
    )
