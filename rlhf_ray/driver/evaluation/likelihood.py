"""Likelihood of given demonstrations under the engines' model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_ray.batching.balance import balance
from rlhf_ray.calls import CallWaiter
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.roles import GeneratorRole
from rlhf_ray.evaluation.evaluation_report import Likelihood
from rlhf_ray.records.supervised import LabelledTokens


def measure_likelihood(
    engines: GeneratorRole,
    waiter: CallWaiter,
    examples: Sequence[LabelledTokens],
    *,
    at_once: int,
    timeout_s: float,
) -> Likelihood:
    """Sum the negative log-probabilities of the tokens under the loss mask, at temperature 1.

    Args:
        at_once: number of sequences that all engines together score at a time.
        timeout_s: deadline of scoring `at_once` sequences.

    Raises:
        RunFailed: an engine failed, was late, or computes NaN.
    """
    total, num_tokens = 0.0, 0
    for start in range(0, len(examples), at_once):
        piece = examples[start : start + at_once]
        shares = balance([example.token_ids.shape[0] for example in piece], len(engines.names))
        sequences = [[tuple(piece[i].token_ids.tolist()) for i in share] for share in shares]
        scored = waiter.results(
            engines.score_shares(sequences), phase="evaluate", timeout_s=timeout_s
        )
        for share, rows in zip(shares, scored, strict=True):
            for i, logprobs in zip(share, rows, strict=True):
                learnt = _learnt(piece[i], logprobs)
                total -= math.fsum(learnt)
                num_tokens += len(learnt)
    return Likelihood(num_examples=len(examples), num_tokens=num_tokens, total_nats=total)


def _learnt(example: LabelledTokens, logprobs: Sequence[float]) -> list[float]:
    """Log-probabilities of the tokens under the mask; `logprobs` begin with the second token."""
    mask = example.loss_mask.tolist()[1:]
    learnt = [value for value, is_learnt in zip(logprobs, mask, strict=True) if is_learnt]
    if any(math.isnan(value) for value in learnt):
        raise RunFailed(
            "evaluate: an engine gives demonstrations the log-probability NaN: weights are "
            "damaged, or numbers exceed the number format; check the files of the model, or set "
            "generation.dtype=float32"
        )
    return learnt
