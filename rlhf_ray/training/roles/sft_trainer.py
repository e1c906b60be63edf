"""Supervised fine-tuning and pre-training of a language model, on one rank."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.objectives.text import perplexity, text_objective
from rlhf_ray.records.supervised import SupervisedSamples
from rlhf_ray.training.roles.language_model import LanguageModelRole
from rlhf_ray.training.train_step import Part, run_evaluation, run_update


class SftTrainer(LanguageModelRole):
    """Pre-training and supervised fine-tuning: one loss, cross-entropy of the labelled tokens.

    One object per rank. All methods are called on all ranks together.
    """

    def update(self, steps: Sequence[SupervisedSamples]) -> dict[str, float]:
        """Take an optimiser step for each entry; all ranks have the same number.

        Returns:
            Metrics over all ranks: means over the labelled tokens, then over optimiser steps.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        parts = [[self._part(samples, "train/loss")] for samples in steps]
        result = run_update(self._engine, parts, self._layout)
        return {
            **result.means,
            "train/grad_norm": result.grad_norm,
            "train/learning_rate": result.learning_rate,
            "tokens/trained": float(sum(samples.num_loss_tokens for samples in steps)),
        }

    def evaluate(self, samples: SupervisedSamples) -> dict[str, float]:
        """Mean loss and perplexity over the labelled tokens of all ranks."""
        metrics = run_evaluation(self._part(samples, "eval/loss"), self._layout)
        return {**metrics, "eval/perplexity": perplexity(metrics["eval/loss"])}

    def _part(self, samples: SupervisedSamples, name: str) -> Part[SupervisedSamples]:
        def compute(samples: SupervisedSamples, batch: MicroBatch) -> Objective:
            logprobs, _ = self._forward(batch, 1.0)
            return text_objective(logprobs[: batch.num_targets], samples.num_loss_tokens, name=name)

        return Part(samples=samples, compute=compute)
