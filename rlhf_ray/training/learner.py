"""The learner: the policy in training, on one rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.records import Coefficients, Experience, RolloutGroup, TokenValues
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.objective import Objective, policy_objective
from rlhf_ray.training.policy_role import PolicyRole
from rlhf_ray.training.scoring import score_groups
from rlhf_ray.training.train_step import Part, run_update


class Learner(PolicyRole):
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

    def update(
        self, experiences: Sequence[Experience], *, coefficients: Coefficients
    ) -> dict[str, float]:
        """One optimiser step for each experience; all ranks together, with as many.

        Args:
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
            logprobs, entropy = self._forward(
                batch, self._temperature, entropy_gradient=coefficients.entropy > 0
            )
            return policy_objective(
                logprobs[: batch.num_targets],
                entropy[: batch.num_targets],
                experience,
                batch.token_index,
                algorithm=self._algorithm,
                coefficients=coefficients,
                constant_length=self._max_response_tokens,
                compare_with_generator=number == 0,
            )

        steps = [
            [Part(samples=experience, compute=partial(compute, number))]
            for number, experience in enumerate(experiences)
        ]
        result = run_update(self._engine, steps, self._layout)
        return {
            **result.means,
            **result.maxima,
            "policy/grad_norm": result.grad_norm,
            "policy/learning_rate": result.learning_rate,
            "tokens/trained": float(sum(e.num_loss_tokens for e in experiences)),
        }
