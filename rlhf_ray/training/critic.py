"""The critic: values of the states in which tokens were sampled, on one rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import CriticConfig
from rlhf_ray.models.loading import load_scalar_head
from rlhf_ray.records import Experience, RolloutGroup, TokenValues
from rlhf_ray.training.engine import TrainEngine, start_process
from rlhf_ray.training.forward import ValueForward, disable_dropout
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.objective import Objective, value_objective
from rlhf_ray.training.role import TrainedRole
from rlhf_ray.training.row_layout import row_layout
from rlhf_ray.training.scoring import score_groups, score_states
from rlhf_ray.training.train_step import Part, run_update


class Critic(TrainedRole):
    """Estimates and trains values.

    One object per rank. All methods are called on all ranks together.

    Args:
        model: where the backbone comes from, unless `critic.path` says otherwise.
        total_optimizer_steps: of the whole run, for the learning rate.
        timeout_s: how long a collective operation waits for the other ranks.
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
        super().__init__(critic)
        self._algorithm = algorithm
        self._model_settings = replace(model, path=critic.path or model.path)
        self._total_optimizer_steps = total_optimizer_steps
        self._seed = seed
        self._timeout_s = timeout_s

    def start(self, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
        """Join the other ranks, load the model, build the engine."""
        start_process(
            rank,
            world_size,
            master_addr,
            master_port,
            timeout_s=self._timeout_s,
            cpu_threads=self._settings.cpu_threads,
            seed=self._seed,
            on_gpu=self._settings.num_gpus > 0,
        )
        model = load_scalar_head(self._model_settings, dtype=self._settings.dtype)
        if self._settings.gradient_checkpointing:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        module = ValueForward(model)
        disable_dropout(module)
        attention = self._model_settings.attention
        self._layout = row_layout(model.backbone, self._settings, attention)
        self._started = TrainEngine(module, self._settings, total_steps=self._total_optimizer_steps)

    def score(self, groups: Sequence[RolloutGroup]) -> list[TokenValues]:
        """Values of the sampled tokens of this rank's groups, and after them where configured."""
        score = score_states if self._algorithm.bootstrap_truncated else score_groups
        return score(self._forward, groups, layout=self._layout)

    def update(self, experiences: Sequence[Experience]) -> dict[str, float]:
        """One optimiser step for each experience; metrics over all ranks.

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

    def _forward(self, batch: MicroBatch):
        return self._engine.forward(batch.input_ids, batch.hidden_index, batch.packing)
