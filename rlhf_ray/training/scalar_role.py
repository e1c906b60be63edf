"""What every role that trains a scalar head has in common: model, engine, one number per token."""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainingConfig
from rlhf_ray.models.loading import load_scalar_head
from rlhf_ray.training.engine import TrainEngine, start_process
from rlhf_ray.training.forward import ValueForward, disable_dropout
from rlhf_ray.training.layout import MicroBatch
from rlhf_ray.training.role import TrainedRole
from rlhf_ray.training.row_layout import row_layout


class ScalarRole(TrainedRole):
    """A backbone with a scalar head in training, on one rank; subclasses say what it learns.

    Args:
        model: where the weights come from.
        total_optimizer_steps: of the whole run, for the learning rate.
        timeout_s: how long a collective operation waits for the other ranks.
    """

    def __init__(
        self,
        settings: TrainingConfig,
        *,
        model: ModelConfig,
        total_optimizer_steps: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        super().__init__(settings)
        self._model_settings = model
        self._total_optimizer_steps = total_optimizer_steps
        self._seed = seed
        self._timeout_s = timeout_s

    def start(self, rank: int, world_size: int, master_addr: str, master_port: int) -> None:
        """Join the other ranks, load the model, build the engine; all ranks together."""
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
        self._model = load_scalar_head(self._model_settings, dtype=self._settings.dtype)
        if self._settings.gradient_checkpointing:
            self._model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        module = ValueForward(self._model)
        disable_dropout(module)
        attention = self._model_settings.attention
        self._layout = row_layout(self._model.backbone, self._settings, attention)
        self._started = TrainEngine(module, self._settings, total_steps=self._total_optimizer_steps)

    def _forward(self, batch: MicroBatch) -> Tensor:
        """Values [M] of the states in which the micro-batch's targets were sampled."""
        return self._engine.forward(batch.input_ids, batch.hidden_index, batch.packing)
