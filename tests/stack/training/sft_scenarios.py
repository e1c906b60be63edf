"""Scenarios of supervised fine-tuning. See `scenarios`."""

from __future__ import annotations

from typing import Any

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
    return spread_samples(samples, here.plan(MAX_TOKENS, layout=layout))[here.share]


def learn_from_texts(here: Rank, *, layout: str = "padded", **settings: Any) -> dict[str, Any]:
    """Evaluate, learn for a step, evaluate again."""
    samples = texts(here, layout)
    with here.sft_trainer(layout=layout, **settings) as trainer:
        gradients = record_gradients(trainer)
        shapes = record_rows(trainer)
        before = trainer.evaluate(samples)
        metrics = trainer.update([samples])
        return {
            "before": before,
            "metrics": metrics,
            "after": trainer.evaluate(samples),
            "gradient": gradients[0],
            "rows": shapes,
            "num_own_tokens": int(samples.loss_mask.sum()),
            "weights": weights_of(trainer),
        }


def several_steps(here: Rank, **settings: Any) -> dict[str, Any]:
    """Two optimiser steps in one update, and one after the other."""
    samples = texts(here, "padded")
    with here.sft_trainer(**settings) as trainer:
        together = trainer.update([samples, samples])
        weights = weights_of(trainer)
    with here.sft_trainer(**settings) as trainer:
        apart = [trainer.update([samples]) for _ in range(2)]
        return {
            "together": together,
            "apart": apart,
            "weights": weights,
            "weights_apart": weights_of(trainer),
        }


def from_random_weights(here: Rank, **settings: Any) -> dict[str, Any]:
    with here.sft_trainer(random_weights=True, **settings) as trainer:
        return {"weights": weights_of(trainer)}
