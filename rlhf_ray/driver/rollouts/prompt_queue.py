"""The prompts to sample next: cancelled prompts first, then the stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_ray.driver.roles import PromptSource
from rlhf_ray.records import GroupSummary, Prompt
from rlhf_ray.records.plain_prompts import plain_prompts, prompts_from_plain


class PromptQueue:
    """A stream of prompts that takes prompts back.

    Args:
        max_cancellations: a prompt that was given back this often is urgent.
    """

    def __init__(self, source: PromptSource, *, max_cancellations: int) -> None:
        self._source = source
        self._max_cancellations = max_cancellations
        self._returned: list[Prompt] = []
        self._times_returned: dict[int, int] = {}

    def take(self, count: int) -> list[Prompt]:
        """The next prompts: returned prompts in the order of the stream, then new ones."""
        again, self._returned = self._returned[:count], self._returned[count:]
        return again + [self._source.next() for _ in range(count - len(again))]

    def give_back(self, prompts: Iterable[Prompt]) -> None:
        """Take back prompts that were not trained on; they are the next to be taken."""
        for prompt in prompts:
            self._returned.append(prompt)
            times = self._times_returned.get(prompt.stream_index, 0)
            self._times_returned[prompt.stream_index] = times + 1
        self._returned.sort(key=lambda prompt: prompt.stream_index)

    def is_urgent(self, prompt: Prompt) -> bool:
        """Whether the prompt was given back so often that the next batch must wait for it."""
        return self._times_returned.get(prompt.stream_index, 0) >= self._max_cancellations

    def settle(self, outcomes: Sequence[GroupSummary]) -> None:
        """Report the outcomes of prompts that are done to the stream, in its order."""
        for outcome in sorted(outcomes, key=lambda summary: summary.stream_index):
            self._times_returned.pop(outcome.stream_index, None)
            self._source.record(outcome)

    def state_dict(self) -> dict[str, Any]:
        """The position of the stream and the returned prompts; plain values."""
        return {
            "prompts": self._source.state_dict(),
            "returned": plain_prompts(self._returned),
            "times_returned": [list(item) for item in self._times_returned.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state["prompts"])
        # Checkpoints of releases without over-sampling lack these keys.
        self._returned = prompts_from_plain(state.get("returned", []))
        self._times_returned = dict(state.get("times_returned", []))
