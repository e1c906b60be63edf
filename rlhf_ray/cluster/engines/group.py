"""The engines as the driver calls them: by their place in the run, or all together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.roles.base import call_of
from rlhf_ray.cluster.roles.generator import SIGNS_OF_LIFE

if TYPE_CHECKING:
    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.losses import Lost
    from rlhf_ray.publish.base import EnginePart
    from rlhf_ray.publish.channel import ChannelSettings
    from rlhf_ray.records import Prompt


class GeneratorGroup:
    """All engines. A request names the engine that serves it."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)

    def join(self, member: Member) -> None:
        """Give a new engine the place of the one that had it before."""
        self._members[member.name.rank] = member

    def of(self, engines: Iterable[int]) -> GeneratorGroup:
        """A group of some of the engines, as they are now; it does not follow `join`."""
        return GeneratorGroup([self._members[engine] for engine in engines])

    @property
    def names(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self._members)

    @property
    def nodes(self) -> frozenset[str]:
        """Ids of the nodes with an engine."""
        return frozenset(member.info.node_id for member in self._members)

    @property
    def serving(self) -> Sequence[int]:
        """Engines that take requests: all; `driver.fleet` knows better."""
        return range(len(self._members))

    def ensure_serving(self) -> None:
        """No-op: all engines serve."""

    def issued_again(self, lost: Lost) -> None:
        """No-op: who loses engines keeps the accounts."""

    def ping(self, engine: int) -> Call:
        """Ask an engine for a sign of life."""
        member = self._members[engine]
        ping = member.handle.ping.options(concurrency_group=SIGNS_OF_LIFE)
        return call_of(member, ping.remote(), work=None)

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        """Signal: the samples that failed. Payload: the group of the others.

        Args:
            together: number of samples, of this call and of others, that the engine starts in one
                step when it has them all. Ray may start the methods of an asynchronous actor in
                another order than they were called in, so that every call says it.
        """
        member = self._members[engine]
        method = member.handle.generate.options(num_returns=2)
        request = method.remote(prompt, sample_indices, together)
        return call_of(member, request, work="generate")

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        """End what this engine samples for these prompts: their `generate` ends with failures."""
        member = self._members[engine]
        return call_of(member, member.handle.abort.remote(tuple(prompt_ids)))

    def begin_update(self) -> list[Call]:
        return [call_of(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """`bucket`: a reference, as `LearnerGroup.weight_buckets` gives them."""
        return [call_of(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self, version: int) -> list[Call]:
        """Signal: the version that the engine reports afterwards."""
        return [call_of(m, m.handle.finish_update.remote(version)) for m in self._members]

    def num_workers(self) -> list[Call]:
        """Signal: vLLM's worker processes of the engine."""
        return [call_of(m, m.handle.num_workers.remote()) for m in self._members]

    def open_channel(self, settings: Sequence[ChannelSettings]) -> list[Call]:
        """Signal: the text of a failure, or ""."""
        return [
            call_of(member, member.handle.open_channel.remote(own))
            for member, own in zip(self._members, settings, strict=True)
        ]

    def receive_weights(self, version: int) -> list[Call]:
        """Take new weights from the channel and use them. Signal: like that of `open_channel`."""
        return [call_of(m, m.handle.receive_weights.remote(version)) for m in self._members]

    def close_channel(self) -> list[Call]:
        return [call_of(m, m.handle.close_channel.remote()) for m in self._members]

    def update_seconds(self) -> list[Call]:
        """Signal: seconds of the last update's parts; see `weights.updates.WeightUpdates`."""
        return [call_of(m, m.handle.update_seconds.remote()) for m in self._members]

    def weight_version(self) -> list[Call]:
        return [call_of(m, m.handle.weight_version.remote()) for m in self._members]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [call_of(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def score_shares(self, shares: Sequence[list[tuple[int, ...]]]) -> list[Call]:
        """Score other sequences on each engine; see `score_sequences`."""
        return [
            call_of(member, member.handle.score_sequences.remote(share))
            for member, share in zip(self._members, shares, strict=True)
        ]

    def statistics(self) -> list[Call]:
        """Signal: numbers of the engine since the last call; see `llm.EngineStatistics`."""
        return [call_of(m, m.handle.statistics.remote()) for m in self._members]

    def sleep(self) -> list[Call]:
        return [call_of(m, m.handle.sleep.remote()) for m in self._members]

    def wake_up(self, part: EnginePart) -> list[Call]:
        """Take the memory of a part back; the cache after the weights."""
        return [call_of(m, m.handle.wake_up.remote(part)) for m in self._members]
