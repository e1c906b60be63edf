"""The policy in preference training on feedback, on one rank: KTO."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.objectives.feedback import feedback_objective, log_ratio_objective
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.records.preferences import ComparedSamples, FeedbackSamples
from rlhf_ray.training.roles.preference_trainer import ComparedRole
from rlhf_ray.training.train_step import Part, run_evaluation, run_update

_LOG_RATIO = "log_ratio"


class FeedbackLearner(ComparedRole):
    """Learns from answers that are good or bad. All methods are called on all ranks together."""

    def update(self, steps: Sequence[FeedbackSamples]) -> dict[str, float]:
        """One optimiser step, on the only entry.

        Returns:
            Metrics over all ranks: means over the answers.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        (samples,) = steps
        mean = self._mean_log_ratio(samples)
        part = self._part(samples, mean, "train")
        result = run_update(self._engine, [[part]], self._layout)
        return {**self._metrics(result, samples.judged), "train/reference_point": max(mean, 0.0)}

    def evaluate(self, samples: FeedbackSamples) -> dict[str, float]:
        """The same means under the policy as it is; learns nothing."""
        mean = self._mean_log_ratio(samples)
        metrics = run_evaluation(self._part(samples, mean, "eval"), self._layout)
        return {**metrics, "eval/reference_point": max(mean, 0.0)}

    def _mean_log_ratio(self, samples: FeedbackSamples) -> float:
        """Of the mismatched answers of all ranks; a forward pass without gradient."""

        def compute(samples: ComparedSamples, batch: MicroBatch) -> Objective:
            logprobs, _ = self._forward(batch, 1.0)
            return log_ratio_objective(
                logprobs[: batch.num_targets], samples, batch, name=_LOG_RATIO
            )

        part = Part(samples=samples.mismatched, compute=compute)
        return run_evaluation(part, self._layout)[_LOG_RATIO]

    def _part(self, samples: FeedbackSamples, mean: float, phase: str) -> Part[ComparedSamples]:
        def compute(on_device: ComparedSamples, batch: MicroBatch) -> Objective:
            logprobs, _ = self._forward(batch, 1.0)
            return feedback_objective(
                logprobs[: batch.num_targets],
                samples,
                on_device,
                batch,
                mean_log_ratio=mean,
                preference=self._preference,
                phase=phase,
            )

        return Part(samples=samples.judged, compute=compute)
