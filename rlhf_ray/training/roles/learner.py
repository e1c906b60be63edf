"""The learner: the policy in training, on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.objectives.policy import Objective, Predicted, policy_objective
from rlhf_ray.objectives.text import text_objective
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues
from rlhf_ray.records.supervised import SupervisedSamples
from rlhf_ray.training.forward.scoring import score_distributions, score_groups
from rlhf_ray.training.forward.token_logprobs import of_targets
from rlhf_ray.training.roles.language_model import LanguageModelRole
from rlhf_ray.training.train_step import Part, run_update
from rlhf_ray.training.weights import named as weights
from rlhf_ray.training.weights.ema_policy import EmaEngine
from rlhf_ray.training.weights.lora_folder import scaled_weights


class Learner(LanguageModelRole):
    """Trains the policy, scores with it, and gives its weights away.

    One object per rank. Methods that say so are called on all ranks together.

    Args:
        model: where weights and tokenizer come from.
        max_response_tokens: of the longest answer, for losses over a constant length.
        temperature: of the sampling; log-probabilities of `score` and `update` are at it.
        total_optimizer_steps: of the whole run, for the learning rate.
        timeout_s: how long a collective operation waits for the other ranks.
    """

    def __init__(
        self,
        *,
        training: TrainingConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        max_response_tokens: int,
        temperature: float,
        total_optimizer_steps: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        super().__init__(
            training=training,
            model=model,
            total_optimizer_steps=total_optimizer_steps,
            seed=seed,
            timeout_s=timeout_s,
        )
        self._algorithm = algorithm
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Log-probabilities of the sampled tokens of this rank's groups; all ranks together."""
        return score_groups(self._predict_at(self._temperature), groups, layout=self._layout)

    def score_reference(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """What a reference of the starting weights gives: with the adapter switched off."""
        assert self._adapter is not None, "training.lora is off"
        of_all_kept = self._algorithm.kl_estimator == "full"
        score = score_distributions if of_all_kept else score_groups
        with self._adapter.off():
            return score(
                lambda batch: self._forward(batch, self._temperature, of_all_kept=of_all_kept)[0],
                groups,
                layout=self._layout,
            )

    def update(
        self,
        experiences: Sequence[Experience],
        *,
        coefficients: Coefficients,
        texts: Sequence[SupervisedSamples] = (),
    ) -> dict[str, float]:
        """One optimiser step for each experience; all ranks together, with as many.

        Args:
            texts: to be learnt beside the experience, in the same step (PPO-ptx, Ouyang et al.
                2022, arXiv:2203.02155); as many as experiences, or none.
            coefficients: those in force; that of the KL penalty has no effect here where the
                penalty is in the reward.

        Returns:
            Metrics over all ranks: means over the sampled tokens, and over optimiser steps.
            The gap to the generator is that of the first one, before the weights change.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        if self._algorithm.kl_placement == "reward":
            coefficients = dataclasses.replace(coefficients, kl=0.0)

        def compute(number: int, experience: Experience, batch: MicroBatch) -> Objective:
            predicted = self._predict(batch, coefficients)
            return policy_objective(
                predicted,
                experience,
                batch.token_index,
                algorithm=self._algorithm,
                coefficients=coefficients,
                constant_length=self._max_response_tokens,
                compare_with_generator=number == 0,
            )

        steps: list[list[Part[Any]]] = [
            [Part(samples=experience, compute=partial(compute, number))]
            for number, experience in enumerate(experiences)
        ]
        assert len(texts) in (0, len(steps)), f"texts of {len(texts)} steps for {len(steps)}"
        for step, samples in zip(steps, texts, strict=False):
            step.append(Part(samples=samples, compute=self._text_objective))
        result = run_update(self._engine, steps, self._layout)
        return {
            **result.means,
            **result.maxima,
            "policy/grad_norm": result.grad_norm,
            "policy/learning_rate": result.learning_rate,
            "tokens/trained": float(sum(e.num_loss_tokens for e in experiences)),
        }

    def _text_objective(self, samples: SupervisedSamples, batch: MicroBatch) -> Objective:
        """Of texts, which nobody sampled: at temperature 1, over the whole vocabulary."""
        logprobs, _ = self._forward(batch, 1.0)
        return text_objective(
            logprobs[: batch.num_targets],
            samples.num_loss_tokens,
            name="policy/ptx_loss",
            coefficient=self._algorithm.ptx_coefficient,
        )

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """The adapter alone, as peft names it, for a scale of 1; see `scaled_weights`."""
        assert self._adapter is not None, "training.lora is off"
        return scaled_weights(self._engine, self._adapter)

    def average_weights(self) -> Iterator[tuple[str, Tensor]]:
        """As `named_weights`, of the moving average of the policy (`training.ema_decay`)."""
        engine = self._engine
        assert isinstance(engine, EmaEngine), "training.ema_decay is null"
        return engine.ema.named_weights(self._model)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what `named_weights` gives away, in that order."""
        return weights.weight_shapes(self._model)

    def save_average(self, folder: Path) -> None:
        """Write the moving average of the policy as `save_model` does (`training.ema_decay`)."""
        weights.write_model(self.average_weights(), self._model, self._tokenizer, folder)

    def _predict(self, batch: MicroBatch, coefficients: Coefficients) -> Predicted:
        """What the loss needs of the policy on one micro-batch, with gradient."""
        whole = self._algorithm.kl_estimator == "full" and coefficients.kl > 0
        logprobs, entropy = self._forward(
            batch,
            self._temperature,
            entropy_gradient=coefficients.entropy > 0,
            of_all_kept=whole,
        )
        count = batch.num_targets
        if not whole:
            return Predicted(logprobs=logprobs[:count], entropy=entropy[:count])
        sampled = of_targets(logprobs, batch.targets, batch.kept_token_ids)
        return Predicted(
            logprobs=sampled[:count], entropy=entropy[:count], kept_logprobs=logprobs[:count]
        )
