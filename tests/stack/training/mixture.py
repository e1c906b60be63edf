"""Pretraining texts in addition to the five samples, and scenarios with them (PPO-ptx)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.objectives.text import spread_samples
from rlhf_ray.records import Coefficients
from rlhf_ray.records.supervised import LabelledTokens
from tests.stack.training.rank import GRPO, Rank, record_gradients, record_rows
from tests.stack.training.samples import KL_COEFFICIENT, VOCABULARY

PTX_COEFFICIENT = 0.7
# On two ranks uneven numbers of tokens and, within 16 tokens a forward pass, two micro-batches.
TEXT_LENGTHS = (11, 3, 6, 2)
ALGORITHM = replace(GRPO, ptx_coefficient=PTX_COEFFICIENT)


def make_texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in TEXT_LENGTHS]


def _samples_of(here: Rank) -> Any:
    labelled = []
    for tokens in make_texts():
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[0] = False
        labelled.append(LabelledTokens(token_ids=tokens, loss_mask=mask))
    return spread_samples(labelled, here.plan(16))[here.share]


def with_texts(here: Rank, **settings: Any) -> dict[str, Any]:
    """One step of samples and texts together."""
    samples = _samples_of(here)
    with here.learner(ALGORITHM, **settings) as learner:
        gradients, rows = record_gradients(learner), record_rows(learner)
        metrics = learner.update(
            [here.experience], texts=[samples], coefficients=Coefficients(kl=KL_COEFFICIENT)
        )
        return {
            "metrics": metrics,
            "gradient": gradients[0],
            "rows": rows,
            "num_steps": len(gradients),
            "num_tokens": int(samples.lengths.sum()),
        }


def losses_of_texts(here: Rank, *, coefficient: float) -> dict[str, Any]:
    """The metric before each of five steps on the same texts, with two optimiser steps in each."""
    samples = _samples_of(here)
    algorithm = replace(ALGORITHM, ptx_coefficient=coefficient)
    experience = replace(here.experience, old_logprobs_from=OldLogprobsFrom.LEARNER_IN_UPDATE)
    with here.learner(algorithm, warmup_steps=0) as learner:
        seen = [
            learner.update([experience] * 2, texts=[samples] * 2, coefficients=Coefficients())
            for _ in range(5)
        ]
    return {"losses": [metrics["policy/ptx_loss"] for metrics in seen]}
