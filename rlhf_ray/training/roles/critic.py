"""The critic: values of the states in which tokens were sampled, on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import CriticConfig
from rlhf_ray.objectives.policy import Objective, value_objective
from rlhf_ray.records import Experience, RolloutGroup, TokenValues
from rlhf_ray.training.forward.scoring import score_groups, score_states
from rlhf_ray.training.roles.scalar_model import ScalarRole
from rlhf_ray.training.train_step import Part, run_update


class Critic(ScalarRole):
    """Estimates and trains values.

    One object per rank. All methods are called on all ranks together.

    Args:
        model: source of the backbone, unless `critic.path` is set.
        total_optimizer_steps, seed, timeout_s: see `TrainedRole`.
    """

    def __init__(
        self,
        *,
        critic: CriticConfig,
        algorithm: AlgorithmConfig,
        model: ModelConfig,
        total_optimizer_steps: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        super().__init__(
            training=critic,
            model=replace(model, path=critic.path or model.path),
            total_optimizer_steps=total_optimizer_steps,
            seed=seed,
            timeout_s=timeout_s,
        )
        self._algorithm = algorithm

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Values of the sampled tokens of this rank's groups.

        With `bootstrap_truncated` also the values of the states after truncated answers.
        """
        score = score_states if self._algorithm.bootstrap_truncated else score_groups
        return score(self._forward, groups, layout=self._layout)

    def update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """Take an optimiser step for each experience; return metrics over all ranks.

        Raises:
            RuntimeError: the gradient is not finite.
        """

        def compute(experience: Experience, batch: MicroBatch) -> Objective:
            values = self._forward(batch)[: batch.num_targets]
            return value_objective(values, experience, batch.token_index, algorithm=self._algorithm)

        steps = [[Part(samples=experience, compute=compute)] for experience in experiences]
        result = run_update(self._engine, steps, self._layout)
        return {
            **result.means,
            "value/grad_norm": result.grad_norm,
            "value/learning_rate": result.learning_rate,
        }
