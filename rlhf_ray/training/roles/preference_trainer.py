"""The policy in preference training, on one rank: DPO, its variants, and KTO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from rlhf_ray.algorithms.ragged import sum_by_segment
from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.fit import PreferenceConfig
from rlhf_ray.objectives.feedback import feedback_objective, log_ratio_objective
from rlhf_ray.objectives.pairs import pair_objective
from rlhf_ray.objectives.policy import Objective
from rlhf_ray.records.preferences import FeedbackSamples, PreferenceSamples
from rlhf_ray.training.engine.ranks import reduce_over_ranks, training_device
from rlhf_ray.training.forward.scoring import score_tokens
from rlhf_ray.training.roles.base import RoleArguments
from rlhf_ray.training.roles.language_model import LanguageModelRole
from rlhf_ray.training.train_step import Part, UpdateResult, run_evaluation, run_update


class PreferenceRole(LanguageModelRole):
    """A policy with a loss relative to the model that it starts from, the reference.

    Before the first step the policy is the reference, so `score_answers` gives the reference's
    log-probabilities then, without a second model.

    Args:
        preference: settings of the loss.
        role: see `TrainedRole`.
    """

    def __init__(self, *, preference: PreferenceConfig, **role: Unpack[RoleArguments]) -> None:
        super().__init__(**role)
        self._preference = preference

    def score_answers(self, samples: PreferenceSamples) -> list[float]:
        """Log-probability of every whole answer under the current policy.

        At temperature 1 over the whole vocabulary. All ranks together, each with its own samples.

        Returns:
            [S] in nats.
        """
        values = score_tokens(
            self._predict_at(1.0),
            samples.token_ids,
            samples.lengths,
            samples.loss_mask,
            samples.support_token_ids,
            layout=self._layout,
        )
        return sum_by_segment(values, samples.lengths, samples.loss_mask).tolist()

    def _metrics(self, result: UpdateResult, samples: PreferenceSamples) -> dict[str, float]:
        """Metrics of an optimiser step on these samples; all ranks together."""
        own = samples.loss_mask.sum().to(training_device())
        return {
            **result.means,
            "train/grad_norm": result.grad_norm,
            "train/learning_rate": result.learning_rate,
            "tokens/trained": float(reduce_over_ranks(own)) / self._layout.ranks_per_sample,
        }


class PreferenceTrainer(PreferenceRole):
    """Learns from rankings. One object per rank; all methods are called on all ranks together."""

    def update(self, steps: Sequence[PreferenceSamples]) -> dict[str, float]:
        """Take an optimiser step on the only entry.

        Returns:
            Metrics over all ranks: means over the rankings.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        (samples,) = steps
        result = run_update(self._engine, [[self._part(samples, "train")]], self._layout)
        return self._metrics(result, samples)

    def evaluate(self, samples: PreferenceSamples) -> dict[str, float]:
        """The same metrics under the current policy, without learning."""
        return run_evaluation(self._part(samples, "eval"), self._layout)

    def _part(self, samples: PreferenceSamples, phase: str) -> Part[PreferenceSamples]:
        def compute(samples: PreferenceSamples, batch: MicroBatch) -> Objective:
            logprobs, _ = self._forward(batch, 1.0)
            return pair_objective(
                logprobs[: batch.num_targets],
                samples,
                batch,
                preference=self._preference,
                phase=phase,
            )

        return Part(samples=samples, compute=compute)


_LOG_RATIO = "log_ratio"


class FeedbackTrainer(PreferenceRole):
    """Learns from answers that are good or bad. All methods are called on all ranks together."""

    def update(self, steps: Sequence[FeedbackSamples]) -> dict[str, float]:
        """Take an optimiser step on the only entry.

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
        """The same metrics under the current policy, without learning."""
        mean = self._mean_log_ratio(samples)
        metrics = run_evaluation(self._part(samples, mean, "eval"), self._layout)
        return {**metrics, "eval/reference_point": max(mean, 0.0)}

    def _mean_log_ratio(self, samples: FeedbackSamples) -> float:
        """Mean log-ratio of the mismatched answers of all ranks, without gradient."""

        def compute(samples: PreferenceSamples, batch: MicroBatch) -> Objective:
            logprobs, _ = self._forward(batch, 1.0)
            return log_ratio_objective(
                logprobs[: batch.num_targets], samples, batch, name=_LOG_RATIO
            )

        part = Part(samples=samples.mismatched, compute=compute)
        return run_evaluation(part, self._layout)[_LOG_RATIO]

    def _part(self, samples: FeedbackSamples, mean: float, phase: str) -> Part[PreferenceSamples]:
        def compute(on_device: PreferenceSamples, batch: MicroBatch) -> Objective:
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
