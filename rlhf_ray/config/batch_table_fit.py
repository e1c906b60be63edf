"""The sizes of a stage that learns from examples, before its rows are counted."""

from __future__ import annotations

from rlhf_ray.config.batch_row import BatchRow, ceil, row
from rlhf_ray.config.run import Config

# Stages whose samples are several answers to one prompt: what they are called, and how many
# answers there are at least.
_COMPARED = {"reward_model": ("rankings", 2)}


def fit_rows(config: Config) -> list[BatchRow]:
    """Sizes from samples to micro-batches, top to bottom."""
    fit, training, longest = config.fit, config.training, config.examples.max_tokens
    per_rank = ceil(fit.samples_per_step, training.num_ranks)
    noun, answers = _COMPARED.get(config.stage.name, ("samples", 1))
    fitting = training.max_tokens_per_micro_batch // (answers * longest)
    per_one, pairs = (" x 2 answers", ", of pairs") if answers > 1 else ("", "")
    rows = [
        row(f"{noun} per optimiser step", fit.samples_per_step, "fit.samples_per_step"),
        row("longest sample", longest, "examples.max_tokens, in tokens"),
        row(
            "tokens per optimiser step",
            fit.samples_per_step * answers * longest,
            f"{noun} per optimiser step{per_one} x longest sample, at most{pairs}",
        ),
        row(
            f"learner: {noun} per rank",
            per_rank,
            f"per optimiser step, over training.num_ranks = {training.num_ranks}, about",
        ),
        row(
            "learner: micro-batches per rank",
            ceil(per_rank, fitting),
            f"per optimiser step, at most; training.max_tokens_per_micro_batch = "
            f"{training.max_tokens_per_micro_batch:,} holds {fitting:,} of full length{pairs}",
        ),
        row("epochs", fit.num_epochs, "fit.num_epochs"),
    ]
    if fit.max_steps is not None:
        rows.append(row("optimiser steps in all", fit.max_steps, "fit.max_steps, at most"))
    return rows
