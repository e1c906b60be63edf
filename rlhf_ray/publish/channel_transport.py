"""The driver's part of a transport that is a channel between learner and engines."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rlhf_ray.calls import Call, CallWaiter, MemberName, PendingCalls
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.publish.base import LOST, POLICY, TransferSettings

if TYPE_CHECKING:
    from rlhf_ray.publish.channel import ChannelSettings

# The ends' deadline of a bucket is this part of the whole publish's. They must be the first to
# give up: they know which bucket it was, and the driver then learns who does not answer.
_BUCKET_SHARE = 0.5
# After the first end has failed, how long others may take to say so too. A lost engine is noticed
# by vLLM within ten seconds.
_OTHERS_S = 15.0


class ChannelFailed(RunFailed):
    """An end of the channel failed, and so all did. With the others, another channel may work.

    Attributes:
        silent: ends that did not even say that they failed.
    """

    def __init__(self, message: str, silent: Sequence[MemberName] = ()) -> None:
        super().__init__(message)
        self.silent = tuple(silent)


class ChannelSource(Protocol):
    """A role that sends through channels: `cluster.roles.learner.LearnerGroup`.

    Signals of `open_channel` and `send_weights`: the text of a failure, or "".
    """

    def weight_specs(self) -> Call: ...
    def listen_for_receivers(self) -> list[Call]: ...
    def open_channel(self, settings: ChannelSettings) -> list[Call]: ...
    def send_weights(self, what: str) -> list[Call]: ...
    def close_channel(self) -> list[Call]: ...


class ChannelReceivers(Protocol):
    """A role that receives through channels: `cluster.engines.group.GeneratorGroup`.

    Signals of `open_channel` and `receive_weights`: the text of a failure, or "".
    """

    def num_workers(self) -> list[Call]: ...
    def open_channel(self, settings: Sequence[ChannelSettings]) -> list[Call]: ...
    def receive_weights(self, version: int) -> list[Call]: ...
    def close_channel(self) -> list[Call]: ...


class ChannelTransport:
    """Opens a channel of a kind, and has all ends move the weights: one call per end and publish.

    Args:
        kind: name of the transport, which decides how buckets travel.
    """

    def __init__(self, kind: str, waiter: CallWaiter, settings: TransferSettings) -> None:
        self._kind = kind
        self._waiter = waiter
        self._settings = settings

    def open(self, source: ChannelSource, receivers: ChannelReceivers) -> None:
        """See `WeightTransport.open`."""
        # Imported here, because it imports torch and plans of runs import this file.
        from rlhf_ray.publish.channel import ChannelSettings

        self._source, self._receivers = source, receivers
        (specs,) = self._wait([source.weight_specs()])
        addresses = self._wait(source.listen_for_receivers())
        workers = self._wait(receivers.num_workers())
        # Another name each time: late messages of a former channel must reach no end of this one.
        name = f"weights-{uuid.uuid4().hex[:8]}"
        settings = [
            ChannelSettings(
                kind=self._kind,
                name=name,
                addresses=tuple(addresses),
                workers=tuple(workers),
                first_worker=first,
                specs=tuple(specs),
                bucket_bytes=self._settings.bucket_bytes,
                timeout_s=self._settings.timeout_s * _BUCKET_SHARE,
            )
            for first in itertools.accumulate(workers[:-1], initial=0)
        ]
        ends = [*receivers.open_channel(settings), *source.open_channel(settings[0])]
        self._settle(ends, f"opening the channel publish.transport={self._kind}")

    def send(self, version: int, *, what: str = POLICY) -> None:
        """See `WeightTransport.send`."""
        ends = [*self._receivers.receive_weights(version), *self._source.send_weights(what)]
        self._settle(ends, f"publishing version {version} (publish.transport={self._kind})")

    def close(self) -> None:
        """See `WeightTransport.close`."""
        self._wait([*self._receivers.close_channel(), *self._source.close_channel()])

    def _wait(self, calls: Sequence[Call]) -> list[Any]:
        settings = self._settings
        return self._waiter.results(calls, phase=settings.phase, timeout_s=settings.timeout_s)

    def _settle(self, calls: Sequence[Call], doing: str) -> None:
        """Wait for all ends; after a failure, wait for the others to learn who caused it.

        One failure makes every end fail, each with words about the others. An end that has died
        makes `results` raise; one that hangs is the one that says nothing.
        """
        problems: dict[MemberName, str] = {}
        deadline = time.monotonic() + self._settings.timeout_s
        silent = dict.fromkeys(calls)
        pending = self._waiter.pending()
        for call in calls:
            pending.add(call)
        while silent:
            for call, answer in self._done(pending, silent, deadline, problems, doing):
                del silent[call]
                problem = str(answer)  # A lost end has its loss as its answer.
                if problem and not problems:
                    deadline = min(deadline, time.monotonic() + _OTHERS_S)
                if problem:
                    problems[call.member] = problem
        if problems:
            raise ChannelFailed(_failure(doing, problems))

    def _done(
        self,
        pending: PendingCalls,
        silent: Iterable[Call],
        deadline: float,
        problems: dict[MemberName, str],
        doing: str,
    ) -> list[tuple[Call, Any]]:
        phase, left = self._settings.phase, max(0.0, deadline - time.monotonic())
        try:
            return pending.take_done(phase=phase, timeout_s=left)
        except RunFailed as error:
            # Before the deadline it is an end that died, and named as that.
            if not problems or time.monotonic() < deadline:
                raise
            members = sorted({call.member for call in silent}, key=str)
            names = ", ".join(str(member) for member in members)
            raise ChannelFailed(
                f"{names}: no answer while {doing}, which had failed. {_listed(problems)}\n{error}",
                members,
            ) from None


def _failure(doing: str, problems: dict[MemberName, str]) -> str:
    """Name the ends with a failure of their own first; all others only felt it."""
    own = {member: text for member, text in problems.items() if LOST not in text}
    felt = {member: text for member, text in problems.items() if member not in own}
    first = _listed(own or felt)
    others = f" Others noticed: {_listed(felt)}." if own and felt else ""
    return (
        f"{doing} failed: {first}.{others} If the network between learner and engines is the "
        f"cause, publish.transport=object_store goes another way; if it was only late, raise "
        f"deadlines.publish_s"
    )


def _listed(problems: dict[MemberName, str]) -> str:
    return "; ".join(f"{member}: {text}" for member, text in sorted(problems.items(), key=str))
