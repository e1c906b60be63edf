"""What the processes of the training tests do with an imitator: learning from texts."""

from __future__ import annotations

from typing import Any

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.objectives.text import spread_samples
from rlhf_ray.records.supervised import LabelledTokens, SupervisedSamples
from tests.stack.training.rank import Rank, record_gradients, record_rows, weights_of
from tests.stack.training.samples import LENGTHS

MAX_TOKENS = 16


def texts(here: Rank, layout: str) -> SupervisedSamples:
    """This rank's part of the samples, as a stage spreads them."""
    ids = here.data["token_ids"].split(LENGTHS)
    masks = here.data["loss_mask"].split(LENGTHS)
    samples = [
        LabelledTokens(token_ids=own, loss_mask=mask) for own, mask in zip(ids, masks, strict=True)
    ]
    plan = RankPlan(num_ranks=here.world_size, max_tokens_per_micro_batch=MAX_TOKENS, layout=layout)
    return spread_samples(samples, plan)[here.rank]


def imitate(here: Rank, *, layout: str = "padded", **settings: Any) -> dict[str, Any]:
    """Evaluate, learn for a step, evaluate again."""
    samples = texts(here, layout)
    with here.imitator(layout=layout, **settings) as imitator:
        gradients = record_gradients(imitator)
        shapes = record_rows(imitator)
        before = imitator.evaluate(samples)
        metrics = imitator.update([samples])
        return {
            "before": before,
            "metrics": metrics,
            "after": imitator.evaluate(samples),
            "gradient": gradients[0],
            "rows": shapes,
            "num_own_tokens": int(samples.loss_mask.sum()),
            "weights": weights_of(imitator),
        }


def several_steps(here: Rank, **settings: Any) -> dict[str, Any]:
    """Two optimiser steps in one update, and one after the other."""
    samples = texts(here, "padded")
    with here.imitator(**settings) as imitator:
        together = imitator.update([samples, samples])
        weights = weights_of(imitator)
    with here.imitator(**settings) as imitator:
        apart = [imitator.update([samples]) for _ in range(2)]
        return {
            "together": together,
            "apart": apart,
            "weights": weights,
            "weights_apart": weights_of(imitator),
        }


def from_random_weights(here: Rank) -> dict[str, Any]:
    with here.imitator(random_weights=True) as imitator:
        return {"weights": weights_of(imitator)}
