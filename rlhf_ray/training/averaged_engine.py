"""An engine that averages its weights over the optimiser steps (`training.ema_decay`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.training.engine.deepspeed_engine import StepResult, TrainEngine
from rlhf_ray.training.engine.ranks import training_device
from rlhf_ray.training.weights.ema_policy import WeightAverage


class AveragedEngine(TrainEngine):
    """A `TrainEngine` with a moving average of its weights, which nothing computes with.

    The average follows every optimiser step and is saved and loaded with the weights. Training
    itself is the same, bit for bit.

    Args:
        decay: weight of the past in the average.
    """

    def __init__(
        self, module: nn.Module, settings: TrainingConfig, *, total_steps: int, decay: float
    ) -> None:
        super().__init__(module, settings, total_steps=total_steps)
        self.average = WeightAverage(self.module, decay=decay)

    def step(self) -> StepResult:
        result = super().step()
        self.average.update()
        return result

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.average.save(folder)

    def load(self, folder: Path, *, optimizer_step: int) -> None:
        super().load(folder, optimizer_step=optimizer_step)
        self.average.load(folder)

    def offload_states(self) -> None:
        self.average.move(torch.device("cpu"))
        super().offload_states()

    def reload_states(self) -> None:
        super().reload_states()
        self.average.move(training_device())


def make_engine(module: nn.Module, settings: TrainingConfig, *, total_steps: int) -> TrainEngine:
    """The engine that the settings ask for: with an average, or without."""
    if settings.ema_decay is None:
        return TrainEngine(module, settings, total_steps=total_steps)
    return AveragedEngine(module, settings, total_steps=total_steps, decay=settings.ema_decay)
