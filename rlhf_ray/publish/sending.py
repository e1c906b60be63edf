"""The learner's end of a channel, of any kind, on one rank."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import torch
from torch import Tensor

from rlhf_ray.publish.channel import (
    ChannelSettings,
    PeerLost,
    SenderEnd,
    StoreAddress,
    drain,
    listen,
    send_weights,
)
from rlhf_ray.publish.plan import PlannedBucket, plan_buckets
from rlhf_ray.publish.transports import channel_ends


class SendingEnd:
    """Opens, uses and closes the sender of this rank, if it has one.

    Methods return the text of a failure, or "": see `channel.send_weights` for the reason.
    """

    def __init__(self) -> None:
        self._listener: socket.socket | None = None
        self._sender: SenderEnd | None = None
        self._plan: tuple[PlannedBucket, ...] = ()

    def listen(self, host: str) -> StoreAddress:
        """The address at which receivers will find this rank."""
        self.close()
        self._listener = listen(host)
        return host, self._listener.getsockname()[1]

    def open(self, settings: ChannelSettings, rank: int, device: torch.device) -> str:
        """Connect with the receivers."""
        assert self._listener is not None, "call listen() first"
        listener, self._listener = self._listener, None
        ends = channel_ends(settings.kind)
        try:
            self._sender = ends.open_sender(settings, rank, listener, device)
        except PeerLost as error:
            return str(error)
        self._plan = plan_buckets(settings.specs, settings.bucket_bytes)
        return ""

    def send(self, named: Iterator[tuple[str, Tensor]]) -> str:
        """Send all weights; a rank without receivers helps to gather them."""
        if self._sender is None:
            drain(named)
            return ""
        return send_weights(named, self._plan, self._sender)

    def close(self) -> None:
        """Free the buffers, and the address if it was not used."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._sender is not None:
            self._sender.close()
            self._sender = None
