"""The EMA of the policy in training, sharded like the optimizer's states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.ema import moving_average
from rlhf_ray.checkpoint_files.slice_index import SavedTensor
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.publish.base import LearnerPart
from rlhf_ray.training.engine.checkpoint import read_earlier_parts
from rlhf_ray.training.engine.deepspeed_engine import StepResult, TrainEngine
from rlhf_ray.training.engine.ranks import rank, training_device
from rlhf_ray.training.engine.sharding import Fill
from rlhf_ray.training.engine.shards import (
    distinct_tensors,
    gather_shards,
    is_partitioned,
    is_spread,
    optimizer_shard,
    weight_shard,
)
from rlhf_ray.training.engine.slicing.tensor_slice import name_in_checkpoint, slice_of
from rlhf_ray.training.engine.state.state_parts import StatePart

AVERAGE = "average"  # The kind of its values in a checkpoint.
_NO_EMA = (
    "the checkpoint {folder} has no EMA: it was written with training.ema_decay=null; resume with "
    "that, or start a new run from the saved model"
)


class EmaPolicy:
    """A float32 EMA of every trained parameter, of the part that this rank's optimizer holds.

    It starts at the current weights and costs 4 bytes per weight, divided by the number of ranks at
    ZeRO-1 and above (a whole EMA of a 72B model would be 288 GB on every rank). It averages the
    optimizer's float32 weights: the bfloat16 ones change by whole rounding steps.

    Args:
        module: the module of a DeepSpeed engine with an optimizer.
        decay: weight of the past; see `moving_average`.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._parameters = {
            name_in_checkpoint(name, parameter): parameter
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
        """Average the new weights in, after an optimiser step."""
        for name, part in self._parts.items():
            # Asked for again each time: DeepSpeed may have moved its buffers since.
            latest = optimizer_shard(self._parameters[name]).values
            part.copy_(moving_average(part, latest, decay=self._decay))

    @torch.no_grad()
    def named_weights(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """Names and whole tensors as `weights.named_weights` gives them, of the EMA.

        In the number format of the model. All ranks must iterate to the end together, because the
        parts are gathered one tensor at a time. Saved buffers and frozen weights have no EMA and
        are given as they are.

        Args:
            model: the module of this EMA, or a part of it.
        """
        # By identity: `model` may be a part of the module, with shorter names.
        names = {id(parameter): name for name, parameter in self._parameters.items()}
        for name, tensor in distinct_tensors(model).items():
            own = names.get(id(tensor))
            whole = _whole_tensor(tensor) if own is None else self._whole_ema(own)
            yield name, whole.to(tensor.dtype)

    def added_to(self, part: StatePart) -> StatePart:
        """A part of the checkpoint with the EMA of the same slice, if it has one."""
        average = self._parts.get(part.name)
        if average is None:
            return part
        return replace(part, values={**part.values, AVERAGE: average})

    def check_saved(self, folder: Path, saved: dict[str, SavedTensor]) -> None:
        """Check that a checkpoint has the EMA.

        Raises:
            ValueError: it has not.
        """
        without = [n for n in self._parts if n in saved and AVERAGE not in saved[n].kinds]
        if without:
            raise ValueError(_NO_EMA.format(folder=folder))

    def load_earlier(self, folder: Path) -> None:
        """Read the files of releases before, on the ranks and at the ZeRO stage that wrote them.

        Raises:
            ValueError: the file is missing, or of other weights.
        """
        path = self._earlier_file(folder)
        if not path.is_file():
            raise ValueError(_NO_EMA.format(folder=folder))
        parts = read_earlier_parts(path)
        here = {name: part.numel() for name, part in self._parts.items()}
        if here != {name: part.numel() for name, part in parts.items()}:
            raise ValueError(
                f"{path} is the EMA of a model with other weights: resume with the model and "
                f"training.freeze that wrote it, or start a new run from the saved model"
            )
        for name, part in self._parts.items():
            part.copy_(parts[name])

    def move(self, device: torch.device) -> None:
        """Move the EMA to a device."""
        self._parts = {name: part.to(device) for name, part in self._parts.items()}

    def _whole_ema(self, name: str) -> Tensor:
        """The EMA of a parameter, put together from the parts of all ranks."""
        parameter, part = self._parameters[name], self._parts[name]
        # The EMA's part lies where the optimizer's part of the same parameter lies.
        shard = replace(optimizer_shard(parameter), values=part)
        if is_spread(parameter):
            return gather_shards(shard)
        whole = part.view(shard.shape)
        return whole if shard.part is None else shard.part.joined(whole)

    def _earlier_file(self, folder: Path) -> Path:
        # Without ZeRO all ranks held the same, and rank 0 wrote it.
        spread = any(is_spread(parameter) for parameter in self._parameters.values())
        return folder / f"average_rank_{rank() if spread else 0:05d}.pt"


def _whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor without an EMA, gathered from its shards."""
    if is_partitioned(tensor):
        return gather_shards(weight_shard(tensor))
    part = slice_of(tensor)
    return tensor.detach() if part is None else part.joined(tensor.detach())


class EmaEngine(TrainEngine):
    """A `TrainEngine` that keeps an EMA of its weights.

    The EMA follows every optimiser step and is saved and loaded with the weights. Training does not
    read it and stays the same, bit for bit.

    Args:
        decay: weight of the past in the EMA.
    """

    _keeps_masters = True

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingConfig,
        *,
        total_steps: int,
        decay: float,
        fill: Fill | None = None,
    ) -> None:
        super().__init__(module, settings, total_steps=total_steps, fill=fill)
        self.ema = EmaPolicy(self.module, decay=decay)

    def step(self) -> StepResult:
        result = super().step()
        self.ema.update()
        return result

    def _parts(self) -> list[StatePart]:
        return [self.ema.added_to(part) for part in super()._parts()]

    def _load_slices(self, folder: Path, saved: dict[str, SavedTensor]) -> None:
        self.ema.check_saved(folder, saved)
        super()._load_slices(folder, saved)

    def _load_deepspeed(self, folder: Path) -> None:
        super()._load_deepspeed(folder)
        self.ema.load_earlier(folder)

    def offload_states(self, part: LearnerPart) -> None:
        # The EMA leaves last: it may be what is published.
        if part is LearnerPart.WEIGHTS:
            self.ema.move(torch.device("cpu"))
        super().offload_states(part)

    def reload_states(self) -> None:
        super().reload_states()
        self.ema.move(training_device())


def make_engine(
    module: nn.Module, settings: TrainingConfig, *, total_steps: int, fill: Fill | None = None
) -> TrainEngine:
    """Build the engine that the settings ask for: with an EMA, or without."""
    if settings.ema_decay is None:
        return TrainEngine(module, settings, total_steps=total_steps, fill=fill)
    decay = settings.ema_decay
    return EmaEngine(module, settings, total_steps=total_steps, decay=decay, fill=fill)
