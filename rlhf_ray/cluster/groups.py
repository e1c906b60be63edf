"""The roles as the driver sees them: one object per role, one method per request.

Every method starts work and returns calls; `Supervisor` waits for them. Scatter and gather are
written out in each method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.batching.balance import balance
from rlhf_ray.calls import Call, MemberName
from rlhf_ray.cluster.roles.base import POLICY
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.records import Coefficients, Prompt


def _call(member: Member, refs: Any) -> Call:
    """Of a method that returns one value, or a signal and a payload."""
    signal, payload = refs if isinstance(refs, list) else (refs, None)
    return Call(member=member.name, signal=signal, payload=payload)


class Generators:
    """All engines. A request names the engine that serves it."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    @property
    def names(self) -> tuple[MemberName, ...]:
        return tuple(member.name for member in self._members)

    def generate(self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...]) -> Call:
        """Signal: the samples that failed. Payload: the group of the others."""
        member = self._members[engine]
        method = member.handle.generate.options(num_returns=2)
        return _call(member, method.remote(prompt, sample_indices))

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        """End what this engine samples for these prompts: their `generate` ends with failures."""
        member = self._members[engine]
        return _call(member, member.handle.abort.remote(tuple(prompt_ids)))

    def hold(self) -> list[Call]:
        """From here on requests are taken but not started."""
        return [_call(m, m.handle.hold.remote()) for m in self._members]

    def release(self, num_requests: Sequence[int]) -> list[Call]:
        """Start all that was held back, together: so many requests on each engine.

        Ray may start the methods of an asynchronous actor in another order than they were
        called in: wait for `hold` before the requests, and say here how many there are.
        """
        return [
            _call(member, member.handle.release.remote(number))
            for member, number in zip(self._members, num_requests, strict=True)
        ]

    def begin_update(self) -> list[Call]:
        return [_call(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """`bucket`: a reference, as `Learners.weight_buckets` gives them."""
        return [_call(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self, version: int) -> list[Call]:
        """Signal: the version that the engine reports afterwards."""
        return [_call(m, m.handle.finish_update.remote(version)) for m in self._members]

    def weight_version(self) -> list[Call]:
        return [_call(m, m.handle.weight_version.remote()) for m in self._members]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [_call(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def score_shares(self, shares: Sequence[list[tuple[int, ...]]]) -> list[Call]:
        """As `score_sequences`, of sequences of its own for each engine."""
        return [
            _call(member, member.handle.score_sequences.remote(share))
            for member, share in zip(self._members, shares, strict=True)
        ]

    def sleep(self) -> list[Call]:
        return [_call(m, m.handle.sleep.remote()) for m in self._members]

    def wake_up(self) -> list[Call]:
        return [_call(m, m.handle.wake_up.remote()) for m in self._members]


class Ranks:
    """All ranks of a DeepSpeed role."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = tuple(members)

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """Per-token values of scattered groups.

        Args:
            groups: references; num_tokens: of each, to balance the ranks.

        Returns:
            a call per rank, with a reference to its `list[TokenValues]` as payload.
        """
        return self._scattered([m.handle.score for m in self._members], groups, num_tokens)

    def _scattered(
        self, methods: Sequence[Any], groups: Sequence[Any], num_tokens: Sequence[int]
    ) -> list[Call]:
        """A rank's method with its share of the groups, for every rank."""
        shares = balance(num_tokens, len(self._members))
        return [
            _call(member, method.options(num_returns=2).remote(*(groups[i] for i in share)))
            for member, method, share in zip(self._members, methods, shares, strict=True)
        ]


class SavedRanks(Ranks):
    """All ranks of a role that a checkpoint has a folder of."""

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return [_call(m, m.handle.save_checkpoint.remote(folder)) for m in self._members]

    def load_checkpoint(self, folder: Path) -> list[Call]:
        return [_call(m, m.handle.load_checkpoint.remote(folder)) for m in self._members]


class TrainedRanks(SavedRanks):
    """All ranks of a role with an optimizer."""

    def offload_states(self) -> list[Call]:
        return [_call(m, m.handle.offload_states.remote()) for m in self._members]

    def reload_states(self) -> list[Call]:
        return [_call(m, m.handle.reload_states.remote()) for m in self._members]


class Learners(TrainedRanks):
    """All ranks of the learner."""

    def score_reference(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """As `score`, with the adapter switched off."""
        methods = [m.handle.score_reference for m in self._members]
        return self._scattered(methods, groups, num_tokens)

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        """One update of the policy.

        Args:
            experiences: a reference per rank.
            texts: per rank, its texts of every optimiser step, or none. As an argument of their
                own they travel like any large one: Ray stores them once and passes a reference.

        Returns:
            calls with metrics as signal, the same on every rank.
        """
        return [
            _call(member, member.handle.update.remote(experience, mine, coefficients))
            for member, experience, mine in zip(self._members, experiences, texts, strict=True)
        ]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [_call(m, m.handle.score_sequences.remote(sequences)) for m in self._members]

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        """A stream of bucket references from rank 0; and the other ranks' part in it.

        Args:
            what: `POLICY`, `ADAPTER` or `AVERAGE` of `actors`.
        """
        first = self._members[0]
        # Two buckets at most exist at a time, one under way and one packed, with their signals.
        stream = first.handle.weight_buckets.options(
            num_returns="streaming", _generator_backpressure_num_objects=4
        ).remote(bucket_bytes, what)
        others = [_call(m, m.handle.join_gathering.remote(what)) for m in self._members[1:]]
        return Call(member=first.name, signal=stream, payload=None), others

    def weight_shapes(self) -> Call:
        """Signal: names and shapes of what `weight_buckets` gives away, in that order."""
        first = self._members[0]
        return _call(first, first.handle.weight_shapes.remote())

    def save_model(self, folder: Path) -> list[Call]:
        return [_call(m, m.handle.save_model.remote(folder)) for m in self._members]

    def save_average(self, folder: Path) -> list[Call]:
        return [_call(m, m.handle.save_average.remote(folder)) for m in self._members]


class References(SavedRanks):
    """All ranks of the reference. It takes weights as engines do, where it follows the policy."""

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> list[Call]:
        """Fails where the reference could not take weights of these names and shapes."""
        return [_call(m, m.handle.check_weights.remote(shapes)) for m in self._members]

    def begin_update(self) -> list[Call]:
        return [_call(m, m.handle.begin_update.remote()) for m in self._members]

    def load_bucket(self, bucket: Any) -> list[Call]:
        """`bucket`: a reference, as `Learners.weight_buckets` gives them."""
        return [_call(m, m.handle.load_bucket.remote(bucket)) for m in self._members]

    def finish_update(self) -> list[Call]:
        return [_call(m, m.handle.finish_update.remote()) for m in self._members]


class FittedRanks(TrainedRanks):
    """All ranks of a model that learns from examples."""

    def score_answers(self, samples: Sequence[Any]) -> list[Call]:
        """`samples`: those of each rank. Signal: a number for each of them."""
        return [
            _call(member, member.handle.score_answers.remote(own))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def update(self, samples: Sequence[Any]) -> list[Call]:
        """One optimiser step; `samples`: those of each rank. Signal: metrics, the same on all."""
        return [
            _call(member, member.handle.update.remote([own]))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def evaluate(self, samples: Sequence[Any]) -> list[Call]:
        """`samples`: those of each rank. Signal: metrics, the same on all of them."""
        return [
            _call(member, member.handle.evaluate.remote(own))
            for member, own in zip(self._members, samples, strict=True)
        ]

    def save_model(self, folder: Path) -> list[Call]:
        return [_call(m, m.handle.save_model.remote(folder)) for m in self._members]


class Critics(TrainedRanks):
    """All ranks of the critic."""

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        return [
            _call(member, member.handle.update.remote(experience))
            for member, experience in zip(self._members, experiences, strict=True)
        ]


class Builders:
    """The one worker that turns groups into experience."""

    def __init__(self, member: Member, *, num_learners: int, num_critics: int) -> None:
        self._member = member
        self._num_learners = num_learners
        self._num_critics = num_critics

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call:
        """Signal: metrics. Payload: `(learner, critic)`, a reference per rank of each."""
        counts = {
            "groups": len(groups),
            "reference": len(reference),
            "values": len(values),
            "old": len(old),
        }
        num_returns = 1 + self._num_learners + self._num_critics
        method = self._member.handle.build.options(num_returns=num_returns)
        refs = method.remote(step, coefficients, counts, *groups, *reference, *values, *old)
        metrics, *experiences = refs
        learner = tuple(experiences[: self._num_learners])
        critic = tuple(experiences[self._num_learners :])
        return Call(member=self._member.name, signal=metrics, payload=(learner, critic))

    def examine(self, groups: Sequence[Any], reference: Sequence[Any], settings: Any) -> Call:
        """Signal: what `evaluation.answers.examine_groups` makes of scored groups.

        Args:
            reference: payloads of `Ranks.score` for the same groups; none without a reference.
        """
        method = self._member.handle.examine
        return _call(self._member, method.remote(settings, len(groups), *groups, *reference))

    def write_rollouts(self, path: Path, groups: Sequence[Any]) -> Call:
        return _call(self._member, self._member.handle.write_rollouts.remote(path, *groups))
