"""Trained engine and frozen engine, over DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from torch import Tensor, nn

from rlhf_ray.checkpoint_files.facts import CheckpointFacts
from rlhf_ray.checkpoint_files.slice_index import SavedTensor, read_indexes
from rlhf_ray.config.groups.training import RoleConfig, TrainingConfig
from rlhf_ray.publish.base import LearnerPart
from rlhf_ray.training.engine.deepspeed_config import frozen_config, trained_config
from rlhf_ray.training.engine.deepspeed_files import PlainCheckpointEngine
from rlhf_ray.training.engine.device_states import DeviceStates
from rlhf_ray.training.engine.ranks import rank, training_device, world_size
from rlhf_ray.training.engine.schedule import learning_rate
from rlhf_ray.training.engine.sharding import Fill
from rlhf_ray.training.engine.shards import is_partitioned
from rlhf_ray.training.engine.slicing.tensor_slice import whole_norm
from rlhf_ray.training.engine.starting.initialize import DTYPES, initialized, sliced
from rlhf_ray.training.engine.starting.optimizer import adamw
from rlhf_ray.training.engine.state.frozen_weights import FrozenWeights
from rlhf_ray.training.engine.state.held_state import RankState, held_slices, put_back
from rlhf_ray.training.engine.state.state_files import read_parts, write_parts
from rlhf_ray.training.engine.state.state_parts import (
    StatePart,
    own_share,
    parts_of,
    prepare_moments,
    round_into_weights,
)

_TAG = "engine"  # Of checkpoints in DeepSpeed's own format.
_PREFIX = "state"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """Result of an optimiser step; the norm is of the whole gradient, before clipping."""

    grad_norm: float
    learning_rate: float


class TrainEngine:
    """A module with an optimizer, sharded by ZeRO.

    The loss of a micro-batch must be a SUM over its tokens divided by a GLOBAL count, so that
    the sum over micro-batches and ranks is the loss of the step.

    Args:
        module: a module whose `forward` takes and returns tensors. At stage 3 its values may be on
            rank 0 alone, or made by `fill`; see `shard_module`.
        total_steps: optimiser steps of the whole run, for the learning rate.
    """

    _keeps_masters = False  # See `DeviceStates`.

    def __init__(
        self,
        module: nn.Module,
        settings: TrainingConfig,
        *,
        total_steps: int,
        fill: Fill | None = None,
    ) -> None:
        self._settings = settings
        self._total_steps = total_steps
        self._step = 0
        self._device_states: DeviceStates | None = None
        on_cuda = torch.cuda.is_available()
        config = trained_config(settings, on_cuda=on_cuda)
        self._engine, self._tensor_group = initialized(
            module,
            config,
            settings,
            optimizer=lambda: adamw(module, settings, on_cuda=on_cuda),
            fill=fill,
        )
        # DeepSpeed chooses it by its configuration, which cannot name one of ours.
        self._engine.checkpoint_engine = PlainCheckpointEngine(self._engine._config)
        self._frozen = FrozenWeights(self._engine.module)
        self._is_plain = not self._engine.zero_optimization()
        if self._is_plain and self._data_size == 1:
            # A single rank has nothing to sum, but stage 0 would still copy all gradients to one
            # buffer and back.
            self._engine.enable_backward_allreduce = False

    @property
    def module(self) -> Any:
        return self._engine.module

    @property
    def _data_size(self) -> int:
        """Ranks that have different samples, as DeepSpeed sees it."""
        return world_size() if self._tensor_group is None else self._tensor_group.data_size

    @property
    def optimizer_step(self) -> int:
        """Optimiser steps since the start of the run, including those before a resume."""
        return self._step

    def forward(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Accumulate the gradient of a micro-batch; `is_last` of the optimiser step."""
        # DeepSpeed would count to find the last one, but ragged samples give every step another
        # number of micro-batches.
        self._engine.set_gradient_accumulation_boundary(is_last)
        # DeepSpeed averages gradients over data-parallel ranks; our losses have global counts as
        # divisors and must be summed.
        self._engine.backward(loss * self._data_size, scale_wrt_gas=False)

    def step(self) -> StepResult:
        """Clip, update the weights, clear the gradient.

        Raises:
            RuntimeError: the gradient is not finite.
        """
        rate = learning_rate(self._step, settings=self._settings, total_steps=self._total_steps)
        for group in self._engine.basic_optimizer.param_groups:
            group["lr"] = rate
        # Stage 0 does not report the norm, but every rank has the whole gradient there.
        norm = self._clip_plain_gradient() if self._is_plain else None
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm()) if norm is None else norm
        # DeepSpeed's ZeRO optimizers report -1 instead of NaN and infinity.
        if not 0 <= norm < float("inf"):
            raise RuntimeError(
                f"the gradient of optimiser step {self._step} is not finite: lower the learning "
                f"rate, or look for NaN in the rewards and advantages"
            )
        self._step += 1
        return StepResult(grad_norm=norm, learning_rate=rate)

    def _clip_plain_gradient(self) -> float:
        """Clip the whole gradient as DeepSpeed does at stages 1 to 3; return the norm before it."""
        parameters = list(self._engine.module.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self._tensor_group is None:
            norm = torch.nn.utils.get_total_norm(gradients)
        else:
            norm = whole_norm(parameters, self._tensor_group)
        limit = self._settings.gradient_clip_norm
        if 0 < limit < float(norm):
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)

    def gathered(self, tensors: Sequence[Tensor]) -> Any:
        """Gather parameters on every rank for a `with` block that all ranks enter together."""
        return _gathered(tensors)

    def snapshot(self, *, copies: bool) -> Callable[[Path], None]:
        """A function that writes this rank's share of weights and optimizer states to a folder.

        Of frozen weights it writes a sum alone; see `FrozenWeights`.

        Args:
            copies: copy them to host memory now, so that training may go on meanwhile.
        """
        parts = self._frozen.left_out(own_share(part) for part in self._parts())
        if copies:
            parts = [part.copied() for part in parts]
        own = rank()
        return lambda folder: write_parts(folder, _PREFIX, own, parts)

    def load(self, folder: Path, facts: CheckpointFacts) -> None:
        """Read the files of `snapshot`, of any number of ranks and any ZeRO stage.

        All ranks call it together.

        Raises:
            ValueError: the files are damaged, incomplete, or of a model with other weights.
        """
        with self._frozen.replaced():
            if facts.layout_is_fixed:
                self._load_deepspeed(folder)
            else:
                self._load_slices(folder, read_indexes(folder, _PREFIX, facts.world_size))
        self._step = facts.optimizer_step

    def _parts(self) -> list[StatePart]:
        """All that a checkpoint has of this rank."""
        return list(parts_of(self.module, self._engine.basic_optimizer))

    def held(self, random: Mapping[str, Any]) -> RankState:
        """This rank's state with that of its random generators; see `held_slices`."""
        return RankState(
            optimizer_step=self._step,
            slices=held_slices(self._frozen.not_in_files(self._parts())),
            has_frozen=self._frozen.are_replaced,
            random=random,
        )

    def restore(self, state: RankState) -> None:
        """Go on from the result of `held` of the same rank; all ranks call it together.

        Raises:
            ValueError: it is of a rank that holds other slices.
        """
        with self._frozen.replaced() if state.has_frozen else nullcontext():
            self._fill(state.steps(), lambda: put_back(state.slices, self._parts()))
        self._step = state.optimizer_step

    def _load_slices(self, folder: Path, saved: dict[str, SavedTensor]) -> None:
        def read() -> None:
            read_parts(folder, saved, self._frozen.still_to_read(folder, saved, self._parts()))

        self._fill(saved, read)

    def _fill(self, saved: Mapping[str, SavedTensor], read: Callable[[], None]) -> None:
        """Let `read` put values into the parts, and make everything else follow from them."""
        prepare_moments(self.module, self._engine.basic_optimizer, saved)
        if is_sharded := self._engine.zero_optimization_stage() == 3:
            self._engine.optimizer.checkpoint_event_prologue()
        read()
        if is_sharded:
            round_into_weights(self.module, self._engine.basic_optimizer)
            self._engine.optimizer.checkpoint_event_epilogue()
        elif not self._is_plain:
            # Every rank has the float32 weights of its part, and gets the others' rounded.
            self._engine.optimizer.update_lp_params()

    def _load_deepspeed(self, folder: Path) -> None:
        """Read DeepSpeed's own files, which releases before wrote."""
        found, _ = self._engine.load_checkpoint(str(folder), tag=_TAG)
        if found is None:
            raise ValueError(f"{folder} holds no DeepSpeed checkpoint; it may be incomplete")

    def offload_states(self, part: LearnerPart) -> None:
        """Free the GPU of a part: move it to host memory. Does nothing on a CPU."""
        if torch.cuda.is_available():
            self._device_states = self._device_states or self._movable_states()
            self._device_states.offload(part)

    def _movable_states(self) -> DeviceStates:
        # DeepSpeed's other optimizers (stage 0, and stage 1 with bfloat16) cannot offload.
        movable = (DeepSpeedZeroOptimizer, DeepSpeedZeroOptimizer_Stage3)
        if not isinstance(self._engine.optimizer, movable):
            raise ValueError(
                f"placement.strategy=colocated cannot free a GPU at zero_stage="
                f"{self._settings.zero_stage} in {self._settings.dtype}: use zero_stage 2 or 3"
            )
        return DeviceStates(self._engine, keeps_masters=self._keeps_masters)

    def reload_states(self) -> None:
        """Undo `offload_states`, of all parts."""
        if self._device_states is not None:
            self._device_states.reload(training_device())

    def close(self) -> None:
        self._engine.destroy()


class FrozenEngine:
    """A module without an optimizer: whole on every rank, or sharded at ZeRO stage 3.

    At stage 3 its values may be on rank 0 alone; see `shard_module`.
    """

    def __init__(self, module: nn.Module, settings: RoleConfig) -> None:
        module.requires_grad_(False)
        on_cuda = torch.cuda.is_available()
        if settings.zero_stage == 3:
            config = frozen_config(settings, on_cuda=on_cuda)
            self._engine, _ = initialized(module, config, settings)
        else:
            sliced(module, settings)
            for parameter in module.parameters():
                # Not buffers: the frequencies of rotary embeddings stay in float32, because
                # bfloat16 rounds them so that late positions turn by wrong angles.
                parameter.data = parameter.data.to(DTYPES[settings.dtype])
            self._engine = module.to(training_device())

    def forward(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def close(self) -> None:
        if isinstance(self._engine, deepspeed.DeepSpeedEngine):
            self._engine.destroy()


@contextmanager
def _gathered(tensors: Sequence[Tensor]) -> Iterator[None]:
    sharded = [tensor for tensor in tensors if is_partitioned(tensor)]
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        yield
