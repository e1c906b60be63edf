"""Pretraining texts (PPO-ptx) of every optimiser step, in addition to the rewarded samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.data.prompts.order import RowOrder
from rlhf_ray.data.ptx_texts import TextSet
from rlhf_ray.objectives.text import spread_samples
from rlhf_ray.records.supervised import LabelledTokens, SupervisedSamples

# The texts of one rank (or of ranks that compute samples together), one entry per optimiser step
# of an update; empty without texts.
RankTexts = tuple[SupervisedSamples, ...]


class NoTexts:
    """Null object of a policy that learns from rewards alone."""

    def __init__(self, *, num_ranks: int) -> None:
        self._num_ranks = num_ranks

    def next(self) -> Sequence[RankTexts]:
        return ((),) * self._num_ranks

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


class TextMixture:
    """Texts in a seeded order, a fixed number for every optimiser step.

    The texts of a step depend on the text set, the seed and the number of optimiser steps before
    it, and not on the number of ranks.

    Args:
        plan: how the learner's ranks share the texts.
        texts_per_step: texts over all ranks.
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
        """The texts of the next update of the policy, one entry per share of the learner."""
        steps = [spread_samples(self._take(), self._plan) for _ in range(self._steps_per_update)]
        return tuple(zip(*steps, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The position in the texts, and which texts these are; plain values."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last text that was handed out before `state_dict` was called.

        Raises:
            DataError: the state has other texts, another seed or another order.
        """
        self._order.load_state_dict(state)

    def _take(self) -> list[LabelledTokens]:
        return [
            _all_predicted(self._token_ids[self._order.next().row])
            for _ in range(self._texts_per_step)
        ]


def _all_predicted(token_ids: Sequence[int]) -> LabelledTokens:
    """A text whose tokens are all predicted, except the first."""
    mask = torch.ones(len(token_ids), dtype=torch.bool)
    mask[0] = False
    return LabelledTokens(token_ids=torch.tensor(token_ids, dtype=torch.int64), loss_mask=mask)


TextSource = TextMixture | NoTexts
