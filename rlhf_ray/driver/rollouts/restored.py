"""Batches in flight and groups to replay, on their way through a checkpoint.

The driver's state has the prompts of every batch, and the ids of the groups that were scored by
then. The groups themselves are in files; see `waiting_groups.py`. Prompts without a group are sent
again: their seeds are their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_ray.driver.rollouts.batch_builder import BatchBuilder, ScoredGroup
from rlhf_ray.records import FailureKind, GroupSummary, Prompt, SampleFailure
from rlhf_ray.records.plain_prompts import plain_prompts, prompts_from_plain

# A reference to a scored group, and its summary.
Scored = tuple[Any, GroupSummary]


@dataclass(kw_only=True, slots=True)
class RestoredBatch:
    """A batch that was in flight when the checkpoint was written.

    Attributes:
        prompts: those that belong to it.
        replaced: those that dynamic sampling replaced; their groups are stopgaps.
        waiting: ids of the prompts whose groups were scored, in the order of the groups.
        groups: these groups, once they are read.
    """

    prompts: list[Prompt] = field(default_factory=list)
    replaced: list[Prompt] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    failures: list[SampleFailure] = field(default_factory=list)
    num_dropped: int = 0
    groups: list[ScoredGroup] = field(default_factory=list)

    @property
    def to_send(self) -> list[Prompt]:
        """The prompts that have no group."""
        done = {scored.prompt.prompt_id for scored in self.groups}
        return [prompt for prompt in self.prompts if prompt.prompt_id not in done]

    def take(self, groups: Sequence[Scored], *, oldest: int, keeps_replaced: bool) -> int:
        """Take over the groups whose ids are in `waiting`.

        Args:
            oldest: a group with a token of an earlier version is dropped, and sampled again.
            keeps_replaced: whether this run takes stopgaps.

        Returns:
            the number of groups that were too old.
        """
        prompts = {prompt.prompt_id: prompt for prompt in [*self.prompts, *self.replaced]}
        own = {prompt.prompt_id for prompt in self.prompts}
        # A group without a sampled token has no version: -1.
        fresh = [
            (group, summary)
            for group, summary in groups
            if summary.oldest_version < 0 or summary.oldest_version >= oldest
        ]
        self.groups = [
            ScoredGroup(prompt=prompts[summary.prompt_id], group=group, summary=summary)
            for group, summary in fresh
            if keeps_replaced or summary.prompt_id in own
        ]
        return len(groups) - len(fresh)


def plain_batch(builder: BatchBuilder) -> dict[str, Any]:
    """A batch in flight without its prompts, as plain values."""
    own = {prompt.prompt_id for prompt in builder.prompts}
    scored = [scored.prompt for scored in builder.groups]
    return {
        "groups": [prompt.prompt_id for prompt in scored],
        "replaced": plain_prompts([p for p in scored if p.prompt_id not in own]),
        "failures": [asdict(failure) for failure in builder.failures],
        "num_dropped": builder.num_dropped,
    }


class RestoredRollouts:
    """The rollouts of a checkpoint: batches that were in flight, then groups to replay.

    Args:
        state: of the pipeline; of an earlier release it has the prompts alone. None is empty.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {"pending": []}
        plain = state.get("waiting") or [{}] * len(state["pending"])
        self._batches = [
            _batch(prompts, own) for prompts, own in zip(state["pending"], plain, strict=True)
        ]
        self._replay: list[str] = list(state.get("replay", []))

    @property
    def num_prompts(self) -> int:
        return sum(len(batch.prompts) for batch in self._batches)

    def next_batch(self) -> RestoredBatch:
        """The next batch that was in flight; an empty one after the last."""
        return self._batches.pop(0) if self._batches else RestoredBatch()

    def take(
        self, groups: Sequence[Scored], *, oldest: int, keeps_replaced: bool
    ) -> tuple[int, list[Scored]]:
        """Divide the groups of the files among the batches.

        Args:
            oldest: oldest version that a token in the first batch may have; one more in the next.
            keeps_replaced: see `RestoredBatch.take`.

        Returns:
            the number of groups that were too old, and the groups to replay.

        Raises:
            ValueError: these are not the groups that the state names.
        """
        named = [name for batch in self._batches for name in batch.waiting] + self._replay
        if named != [summary.prompt_id for _, summary in groups]:
            raise ValueError("the files have other groups than the state")
        left, too_old = list(groups), 0
        for place, batch in enumerate(self._batches):
            own, left = left[: len(batch.waiting)], left[len(batch.waiting) :]
            too_old += batch.take(own, oldest=oldest + place, keeps_replaced=keeps_replaced)
        return too_old, left


def _batch(prompts: Sequence[dict[str, Any]], plain: Mapping[str, Any]) -> RestoredBatch:
    return RestoredBatch(
        prompts=prompts_from_plain(prompts),
        replaced=prompts_from_plain(plain.get("replaced", [])),
        waiting=list(plain.get("groups", [])),
        failures=[_failure(failure) for failure in plain.get("failures", [])],
        num_dropped=plain.get("num_dropped", 0),
    )


def _failure(plain: Mapping[str, Any]) -> SampleFailure:
    return SampleFailure(**{**plain, "kind": FailureKind(plain["kind"])})
