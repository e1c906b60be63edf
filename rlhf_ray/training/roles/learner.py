"""The learner: the policy in training, on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.objectives.policy import Objective, Predicted, policy_objective
from rlhf_ray.objectives.text import text_objective
from rlhf_ray.publish.plan import WeightSpec
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues
from rlhf_ray.records.supervised import SupervisedSamples
from rlhf_ray.training.forward.scoring import score_distributions, score_groups
from rlhf_ray.training.forward.token_logprobs import of_targets
from rlhf_ray.training.roles.base import RoleArguments
from rlhf_ray.training.roles.language_model import LanguageModelRole
from rlhf_ray.training.train_step import Part, run_update
from rlhf_ray.training.weights import named as weights
from rlhf_ray.training.weights.ema_policy import EmaEngine
from rlhf_ray.training.weights.lora_folder import scaled_weights


class Learner(LanguageModelRole):
    """Trains the policy, scores with it, and hands out its weights.

    One object per rank. Methods that say so are called on all ranks together.

    Args:
        max_response_tokens: length of the longest answer, for losses over a constant length.
        temperature: sampling temperature; `score` and `update` use it too.
        role: see `TrainedRole`.
    """

    def __init__(
        self,
        *,
        algorithm: AlgorithmConfig,
        max_response_tokens: int,
        temperature: float,
        **role: Unpack[RoleArguments],
    ) -> None:
        super().__init__(**role)
        self._algorithm = algorithm
        self._max_response_tokens = max_response_tokens
        self._temperature = temperature

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Log-probabilities of the sampled tokens of this rank's groups; all ranks together."""
        return score_groups(self._predict_at(self._temperature), groups, layout=self._layout)

    def score_reference(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Score with the adapter switched off: the starting weights are the reference."""
        assert self._adapter is not None, "training.lora is off"
        over_support = self._algorithm.kl_estimator == "full"
        score = score_distributions if over_support else score_groups
        with self._adapter.off():
            return score(
                lambda batch: self._forward(batch, self._temperature, over_support=over_support)[0],
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
        """Take an optimiser step for each experience; all ranks together, with the same number.

        Args:
            texts: pretraining texts learnt in the same steps (PPO-ptx, Ouyang et al. 2022,
                arXiv:2203.02155); as many as experiences, or none.
            coefficients: current coefficients of the loss. The KL coefficient is ignored if the
                penalty is part of the reward.

        Returns:
            Metrics over all ranks: means over the sampled tokens, then over optimiser steps. The
            gap to the generator is measured in the first step only, before the weights change.

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
        """Loss on pretraining texts, at temperature 1 and over the whole vocabulary."""
        logprobs, _ = self._forward(batch, 1.0)
        return text_objective(
            logprobs[: batch.num_targets],
            samples.num_loss_tokens,
            name="policy/ptx_loss",
            coefficient=self._algorithm.ptx_coefficient,
        )

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Weights of the adapter alone, under peft's names; see `scaled_weights`."""
        assert self._adapter is not None, "training.lora is off"
        return scaled_weights(self._engine, self._adapter)

    def average_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Like `named_weights`, of the policy's EMA (`training.ema_decay`)."""
        engine = self._engine
        assert isinstance(engine, EmaEngine), "training.ema_decay is null"
        return engine.ema.named_weights(self._model)

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights of `named_weights`, in that order."""
        return weights.weight_shapes(self._model)

    def weight_specs(self) -> list[WeightSpec]:
        """Names, dtypes and shapes of the weights of `named_weights`, in that order.

        Those of `average_weights` are the same.
        """
        return weights.weight_specs(self._model)

    def save_average(self, folder: Path) -> None:
        """Write the policy's EMA as `save_model` writes the policy (`training.ema_decay`)."""
        self._write_model(self.average_weights(), folder)

    def _predict(self, batch: MicroBatch, coefficients: Coefficients) -> Predicted:
        """Log-probabilities and entropies of a micro-batch for the loss, with gradient."""
        whole = self._algorithm.kl_estimator == "full" and coefficients.kl > 0
        logprobs, entropy = self._forward(
            batch,
            self._temperature,
            entropy_gradient=coefficients.entropy > 0,
            over_support=whole,
        )
        count = batch.num_targets
        if not whole:
            return Predicted(logprobs=logprobs[:count], entropy=entropy[:count])
        sampled = of_targets(logprobs, batch.targets, batch.support_token_ids)
        return Predicted(
            logprobs=sampled[:count], entropy=entropy[:count], support_logprobs=logprobs[:count]
        )
