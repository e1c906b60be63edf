"""The exponential moving average of weights in training, sharded as the optimizer's are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.ema import moving_average
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.training.engine.checkpoint import read_parts, write_parts
from rlhf_ray.training.engine.deepspeed_engine import StepResult, TrainEngine
from rlhf_ray.training.engine.ranks import rank, training_device
from rlhf_ray.training.engine.shards import (
    gather_shards,
    is_partitioned,
    is_spread,
    optimizer_shard,
    weight_shard,
)
from rlhf_ray.training.weights.named import distinct_tensors


class WeightAverage:
    """A float32 average of every trained parameter: of the part that this rank's optimizer holds.

    It begins at the weights as they are. Costs 4 bytes per weight, divided by the ranks at
    ZeRO-1 and above.

    Args:
        module: of a DeepSpeed engine with an optimizer.
        decay: see `moving_average`.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._decay = decay
        self._parts = {
            name: optimizer_shard(parameter).values.clone()
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """The optimizer has taken a step."""
        for name, part in self._parts.items():
            latest = optimizer_shard(self._parameters[name]).values
            part.copy_(moving_average(part, latest, decay=self._decay))

    @torch.no_grad()
    def named_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """What `weights.named_weights` gives of `model`, averaged, in its number format.

        Every rank must iterate to the end, in step with the others. Saved buffers and frozen
        weights have no average.

        Args:
            model: the module of this average, or a part of it.
        """
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for name, tensor in distinct_tensors(model).items():
            own = names.get(id(tensor))
            whole = _as_it_is(tensor) if own is None else self._whole(own)
            yield name, whole.to(tensor.dtype)

    def save(self, folder: Path) -> None:
        """Write this rank's part; every rank calls it."""
        if rank() == self._owner():
            write_parts(self._file(folder), self._parts)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, on as many ranks and at the same ZeRO stage.

        Raises:
            ValueError: there is none, or it is of other weights.
        """
        path = self._file(folder)
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: the checkpoint {folder} was written with training.ema_decay="
                f"null; resume with that, or start a new run from the saved model"
            )
        parts = read_parts(path)
        here = {name: part.numel() for name, part in self._parts.items()}
        if here != {name: part.numel() for name, part in parts.items()}:
            raise ValueError(f"{path} is the average of other weights than this model has")
        for name, part in self._parts.items():
            part.copy_(parts[name])

    def move(self, device: torch.device) -> None:
        """Keep the average there from now on."""
        self._parts = {name: part.to(device) for name, part in self._parts.items()}

    def _whole(self, name: str) -> Tensor:
        """The averaged parameter, of the parts of all ranks."""
        parameter, part = self._parameters[name], self._parts[name]
        shard = replace(optimizer_shard(parameter), values=part)
        return gather_shards(shard) if is_spread(parameter) else part.view(shard.shape)

    def _owner(self) -> int:
        """The rank whose file has this rank's part: ranks without ZeRO have the same."""
        spread = any(is_spread(parameter) for parameter in self._parameters.values())
        return rank() if spread else 0

    def _file(self, folder: Path) -> Path:
        return folder / f"average_rank_{self._owner():05d}.pt"


def _as_it_is(tensor: Tensor) -> Tensor:
    """What has no average, whole."""
    return gather_shards(weight_shard(tensor)) if is_partitioned(tensor) else tensor.detach()


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
