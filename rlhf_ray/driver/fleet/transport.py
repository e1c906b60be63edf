"""Weights for a fleet: sent again to the others when an engine is lost on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_ray.calls import MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.losses import MemberLost
from rlhf_ray.publish.base import AVERAGE, POLICY, WeightTransport
from rlhf_ray.publish.channel_transport import ChannelFailed


class Musters(Protocol):
    """The fleet as a transport sees it; see `engine_fleet.EngineFleet`."""

    def muster(self, *, takes_new: bool) -> Any: ...
    @property
    def receivers(self) -> Sequence[MemberName]: ...
    def give_up(self, name: MemberName, reason: str) -> None: ...


class FleetTransport:
    """A `WeightTransport` to the engines that are there, opened again when they change.

    A transport in which the loss of one receiver leaves the others alone (the object store) goes
    on. One that fails as a whole (a channel) is opened again with those that are left.

    Args:
        inner: moves the weights.
        source: the role that gives them away.
    """

    def __init__(self, inner: WeightTransport, fleet: Musters, source: Any) -> None:
        self._inner = inner
        self._fleet = fleet
        self._source = source
        self._opened: Any = None
        self._last: tuple[int, str] | None = None

    def open(self, source: Any, receivers: Any) -> None:
        """See `WeightTransport.open`; `receivers`: of the fleet."""
        self._opened = None
        self._inner.open(source, receivers)
        self._opened = receivers

    def send(self, version: int, *, what: str = POLICY) -> None:
        """See `WeightTransport.send`. Ends when an engine has the weights.

        Raises:
            RunFailed: the source failed, or the run cannot go on without a lost engine.
        """
        # Meanwhile the last ones are those before: an average may need the policy sent first.
        while not self._is_sent(version, what):
            pass
        self._last = (version, what)

    def restore(self, publish: Any) -> None:
        """Bring the newest weights to a replacement, and then what the engines had last.

        Args:
            publish: sends the policy and lets the gate decide.
        """
        last = self._last
        publish()
        # No gate can tell whether these arrive: only the engines compute with an average.
        if last is not None and last[1] == AVERAGE:
            self.send(last[0], what=AVERAGE)

    def source_restarted(self) -> None:
        """The source has new workers: what was opened to the former ones is of no use."""
        self._opened = None

    def close(self) -> None:
        """See `WeightTransport.close`. An engine that was lost has nothing to disconnect."""
        with contextlib.suppress(MemberLost):
            self._inner.close()

    def _is_sent(self, version: int, what: str) -> bool:
        """Send once; False if it is to be done again with other receivers."""
        receivers = self._fleet.muster(takes_new=what != AVERAGE)
        before = list(self._fleet.receivers)
        try:
            if receivers is not self._opened:
                self.open(self._source, receivers)
            self._inner.send(version, what=what)
        except RunFailed as error:
            self._opened = None
            if not isinstance(error, (ChannelFailed, MemberLost)):
                raise  # Another worker failed, such as the source, whatever engines did meanwhile.
            if isinstance(error, ChannelFailed):
                self._give_up_silent(error, before)
            if list(self._fleet.receivers) == before:
                raise
            return False
        return bool(self._fleet.receivers)

    def _give_up_silent(self, error: ChannelFailed, receivers: Sequence[MemberName]) -> None:
        for name in error.silent:
            # It may be lost already, or be an end of the source, without which nothing goes on.
            if name in receivers and name in self._fleet.receivers:
                self._fleet.give_up(name, str(error).splitlines()[0])
