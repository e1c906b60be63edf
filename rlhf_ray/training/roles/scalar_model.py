"""Base class of roles that train a model with a scalar head."""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.batching.layout import MicroBatch
from rlhf_ray.training.engine.deepspeed_engine import TrainEngine
from rlhf_ray.training.forward.modules import ValueForward, disable_dropout
from rlhf_ray.training.forward.trial import try_backbone
from rlhf_ray.training.roles.base import TrainedRole
from rlhf_ray.training.roles.row_trials import StartedModel, try_rows
from rlhf_ray.training.roles.start_models import scalar_head
from rlhf_ray.training.weights.trainable import freeze_or_adapt_scalar


class ScalarRole(TrainedRole):
    """A backbone with a scalar head in training, on one rank; subclasses define its loss."""

    def _build(self) -> TrainEngine:
        self._model = scalar_head(self._model_settings, self._settings)
        self._adapter = freeze_or_adapt_scalar(self._model, self._settings, seed=self._seed)
        if self._settings.gradient_checkpointing:
            self._model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        module = ValueForward(self._model)
        disable_dropout(module)
        self._layout = try_backbone(self._model, self._model_settings, self._settings)
        return TrainEngine(module, self._settings, total_steps=self._total_optimizer_steps)

    def _try_rows(self) -> None:
        started = StartedModel(
            module=self._engine.module,
            decoder=self._model.backbone,
            attention=self._model_settings.attention,
            predict=self._forward,
        )
        self._layout, self._sequences = try_rows(
            started, self._layout, self._settings, timeout_s=self._timeout_s
        )

    def _forward(self, batch: MicroBatch) -> Tensor:
        """Values [M] of the states in which the targets of a micro-batch were sampled."""
        return self._engine.forward(batch.input_ids, batch.hidden_index, batch.packing)
