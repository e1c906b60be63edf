"""The texts of every optimiser step, beside the samples that are rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.data.ptx_texts import TextSet
from rlhf_ray.objectives.text import spread_samples
from rlhf_ray.records.supervised import LabelledTokens, SupervisedSamples

# Of one rank: the samples of each optimiser step of an update; empty where no texts are learnt.
RankTexts = tuple[SupervisedSamples, ...]


class TextSource(Protocol):
    """What the trainer takes texts from, and a checkpoint remembers the position of."""

    def next(self) -> Sequence[RankTexts]:
        """Per learner rank, the texts of the next update of the policy."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NoTexts:
    """The policy learns from rewards alone."""

    def __init__(self, *, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    def next(self) -> Sequence[RankTexts]:
        return ((),) * self._num_ranks

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class TextMixture:
    """Texts in their order, so many for every optimiser step.

    Which texts a step has depends on the texts, the seed and the number of optimiser steps before
    it, and not on the number of ranks.

    Args:
        plan: how the learner's ranks share them.
        texts_per_step: over all ranks.
        steps_per_update: optimiser steps of one update.
    """

    def __init__(
        self,
        texts: TextSet,
        *,
        seed: int,
        shuffle: bool,
        plan: RankPlan,
        texts_per_step: int,
        steps_per_update: int,
    ) -> None:
        self._token_ids = texts.token_ids
        self._order = RowOrder(
            "texts",
            num_rows=len(texts.token_ids),
            fingerprint=texts.fingerprint,
            seed=seed,
            shuffle=shuffle,
        )
        self._plan = plan
        self._texts_per_step = texts_per_step
        self._steps_per_update = steps_per_update

    def next(self) -> Sequence[RankTexts]:
        """Per learner rank, the texts of the next update of the policy."""
        steps = [spread_samples(self._take(), self._plan) for _ in range(self._steps_per_update)]
        return tuple(zip(*steps, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """How many texts have been handed out, and of which set; plain values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last text that was handed out before `state_dict` was called.

        Raises:
            DataError: the state is of other texts, another seed or another order.
        """
        self._order.load_state_dict(state)

    def _take(self) -> list[LabelledTokens]:
        return [
            _all_predicted(self._token_ids[self._order.next().row])
            for _ in range(self._texts_per_step)
        ]


def _all_predicted(token_ids: Sequence[int]) -> LabelledTokens:
    """Every token but the first is to be predicted."""
    mask = torch.ones(len(token_ids), dtype=torch.bool)
    mask[0] = False
    return LabelledTokens(token_ids=torch.tensor(token_ids, dtype=torch.int64), loss_mask=mask)
