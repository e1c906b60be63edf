"""The order of prompts: endless, shuffled per epoch, and resumable."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from rlhf_ray.data.errors import DataError
from rlhf_ray.data.prompts import PromptSet
from rlhf_ray.data.seeds import stable_seed
from rlhf_ray.records import GroupSummary, Prompt


class PromptStream:
    """Prompts one after the other, epoch after epoch.

    The order is a function of the data, the seed and the position alone: it is the same for any
    number of workers and for any batch size.

    Args:
        shuffle: every epoch in an order of its own; the order of the source otherwise.
    """

    def __init__(self, prompts: PromptSet, *, seed: int, shuffle: bool) -> None:
        assert prompts.prompts, "load_prompts refuses an empty set"
        self._set = prompts
        self._seed = seed
        self._shuffle = shuffle
        self._next_index = 0
        self._order_epoch = -1
        self._order: list[int] = []

    @property
    def epoch(self) -> int:
        """Epoch of the next prompt, from 0."""
        return self._next_index // len(self._set.prompts)

    def next(self) -> Prompt:
        """The next prompt, with an id and a seed of its own in this epoch."""
        epoch, position = divmod(self._next_index, len(self._set.prompts))
        template = self._set.prompts[self._order_of(epoch)[position]]
        prompt_id = f"e{epoch}-{template.prompt_id}"
        prompt = dataclasses.replace(
            template,
            prompt_id=prompt_id,
            stream_index=self._next_index,
            seed=stable_seed(self._seed, prompt_id),
        )
        self._next_index += 1
        return prompt

    def record(self, outcome: GroupSummary) -> None:
        """Nothing: this order does not depend on how prompts went. See `curriculum`."""
        del outcome

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and in which data; plain values."""
        return {"next_index": self._next_index, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last prompt that was handed out before `state_dict` was called.

        Raises:
            DataError: the state is of other data, another seed or another order: going on would
                repeat some prompts and never show others.
        """
        if "success_rates" in state:
            raise DataError(
                "the checkpoint is of a run with a curriculum. Resume with "
                "sampling.curriculum=true, or start anew with resume=never"
            )
        different = [
            f"{name} was {state[name]!r} and is {value!r}"
            for name, value in self._identity().items()
            if state[name] != value
        ]
        if different:
            raise DataError(
                "the checkpoint's prompt stream is not that of this run: "
                f"{'; '.join(different)}. Resume with the same data, tokenizer and seed, or start "
                "anew with resume=never"
            )
        self._next_index = state["next_index"]

    def _identity(self) -> dict[str, Any]:
        return {
            "num_prompts": len(self._set.prompts),
            "fingerprint": self._set.fingerprint,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    def _order_of(self, epoch: int) -> list[int]:
        """Rows in the order of this epoch."""
        if epoch != self._order_epoch:
            self._order = list(range(len(self._set.prompts)))
            if self._shuffle:
                random.Random(stable_seed(self._seed, "order", epoch)).shuffle(self._order)
            self._order_epoch = epoch
        return self._order
