"""Stream of prompts, each with its own id and seed in every epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.data.prompts.order import RowOrder, stable_seed
from rlhf_ray.data.rows import DataError
from rlhf_ray.records import GroupSummary, Prompt

_MAX_NAMED = 8


def _named(tasks: Sequence[str]) -> str:
    """The tasks for a message; a set may have thousands."""
    more = f" and {len(tasks) - _MAX_NAMED} more" if len(tasks) > _MAX_NAMED else ""
    return ", ".join(tasks[:_MAX_NAMED]) + more


class PromptStream:
    """Endless prompts, epoch after epoch; see `RowOrder`.

    Args:
        shuffle: shuffle every epoch; otherwise keep the order of the source.
    """

    def __init__(self, prompts: PromptSet, *, seed: int, shuffle: bool) -> None:
        self._prompts = prompts.prompts
        self._seed = seed
        self._order = RowOrder(
            "prompts",
            num_rows=len(prompts.prompts),
            fingerprint=prompts.fingerprint,
            rows_fingerprint=prompts.rows_fingerprint,
            tasks=_named(sorted({prompt.source for prompt in prompts.prompts})),
            seed=seed,
            shuffle=shuffle,
        )

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._order.epoch

    def next(self) -> Prompt:
        """The next prompt, with its id and seed in this epoch."""
        place = self._order.next()
        template = self._prompts[place.row]
        prompt_id = f"e{place.epoch}-{template.prompt_id}"
        return dataclasses.replace(
            template,
            prompt_id=prompt_id,
            stream_index=place.index,
            seed=stable_seed(self._seed, prompt_id),
        )

    def record(self, outcome: GroupSummary) -> None:
        """Ignore the outcome: only the order of a `CurriculumStream` depends on it."""
        del outcome

    def state_dict(self) -> dict[str, Any]:
        """Position and identity of the data, as plain values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last prompt that was handed out before `state_dict` was called.

        Raises:
            DataError: the state is of other data, another seed or another order, or of a
                curriculum.
        """
        if "success_rates" in state:
            raise DataError(
                "the checkpoint is of a run with a curriculum. Resume with "
                "rollout_selection.curriculum=true, or start again with resume=never"
            )
        self._order.load_state_dict(state)
