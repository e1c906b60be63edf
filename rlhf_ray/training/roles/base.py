"""Base classes of trained and frozen roles: start, engine, checkpoint, end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import torch

from rlhf_ray.checkpoint_files.facts import SLICES, CheckpointFacts, write_facts
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.publish.base import LearnerPart
from rlhf_ray.training.engine.checkpoint import (
    random_states,
    read_facts,
    read_random_states,
    set_random_states,
    write_random_states,
)
from rlhf_ray.training.engine.deepspeed_engine import FrozenEngine, TrainEngine
from rlhf_ray.training.engine.meeting import Meeting, limit_collectives
from rlhf_ray.training.engine.process import start_process, stop_process
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.state.held_state import RankState
from rlhf_ray.training.forward.sequences import Sequences, WholeSequences


class RoleArguments(TypedDict):
    """Arguments of `TrainedRole`, for subclasses that pass them on."""

    training: TrainingConfig
    model: ModelConfig
    total_optimizer_steps: int
    seed: int
    timeout_s: float


class TrainedRole(ABC):
    """A role with an optimizer, on one rank. Subclasses build the model in `_build`.

    Args:
        model: source of weights and tokenizer.
        total_optimizer_steps: optimiser steps of the whole run, for the learning rate.
        timeout_s: longest wait of a collective operation for the other ranks.
    """

    def __init__(
        self,
        *,
        training: TrainingConfig,
        model: ModelConfig,
        total_optimizer_steps: int,
        seed: int,
        timeout_s: float,
    ) -> None:
        self._settings = training
        self._model_settings = model
        self._total_optimizer_steps = total_optimizer_steps
        self._seed = seed
        self._timeout_s = timeout_s
        self._started: TrainEngine | None = None
        self._sequences: Sequences = WholeSequences()

    def start(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        *,
        meeting: Meeting | None = None,
    ) -> None:
        """Join the other ranks, load the model, build the engine; all ranks together.

        Raises:
            ValueError: the model cannot be loaded, or this role cannot train a model of its kind.
        """
        start_process(
            rank,
            world_size,
            master_addr,
            master_port,
            timeout_s=self._timeout_s,
            cpu_threads=self._settings.cpu_threads,
            seed=self._seed,
            on_gpu=self._settings.num_gpus > 0,
            meeting=meeting,
        )
        self._started = self._build()
        self._try_rows()
        limit_collectives(self._timeout_s)

    @abstractmethod
    def _build(self) -> TrainEngine:
        """Load the model and build its engine."""

    @abstractmethod
    def _try_rows(self) -> None:
        """Try the layout of rows in the engine; see `row_trials.try_rows`."""

    @property
    def _engine(self) -> TrainEngine:
        assert self._started is not None, "call start() first"
        return self._started

    def save_checkpoint(self, folder: Path) -> None:
        """Write everything that a resumed run needs; all ranks call it.

        The folder is complete when all ranks have returned. Ranks on several nodes need a shared
        folder.
        """
        self.snapshot(copies=False)(folder)
        torch.distributed.barrier()

    def snapshot(self, *, copies: bool = True) -> Callable[[Path], None]:
        """A function that writes the state of this moment to a folder, this rank's share.

        It takes part in no collective operation: a thread may call it while the role goes on.

        Args:
            copies: copy the state to host memory now. False reads it when the function is called,
                for a role that waits until it is written.
        """
        write_states = self._engine.snapshot(copies=copies)
        states = random_states()
        facts = CheckpointFacts(
            world_size=world_size(),
            zero_stage=self._settings.zero_stage,
            dtype=self._settings.dtype,
            optimizer_step=self._engine.optimizer_step,
            format=SLICES,
            sequence_parallel_size=self._settings.sequence_parallel_size,
            tensor_parallel_size=self._settings.tensor_parallel_size,
        )
        own = rank()

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            write_states(folder)
            write_random_states(folder, own, states)
            if own == 0:
                write_facts(folder, facts)

        return write

    def load_checkpoint(self, folder: Path) -> None:
        """Resume from a folder of `save_checkpoint`; all ranks call it.

        The folder may be of another number of ranks and of another ZeRO stage.

        Raises:
            ValueError: the folder is incomplete, of another dtype or of another model.
        """
        facts = read_facts(folder, self._settings)
        self._engine.load(folder, facts)
        read_random_states(folder, rank(), facts.world_size)

    def take_state(self) -> RankState:
        """The state of this moment, for memory outside of this process; see `held_slices`."""
        return self._engine.held(random_states())

    def restore_state(self, state: RankState) -> None:
        """Go on from the result of `take_state` of the same rank; all ranks call it together.

        Raises:
            ValueError: it is of a rank that holds other slices.
        """
        self._engine.restore(state)
        set_random_states(state.random)

    def offload_states(self, part: LearnerPart) -> None:
        """Free the GPU of a part, for a role that shares it; does nothing on a CPU."""
        self._engine.offload_states(part)

    def reload_states(self) -> None:
        """Undo `offload_states`."""
        self._engine.reload_states()

    def close(self) -> None:
        """Leave the process group; the role is of no use afterwards."""
        if self._started is not None:
            self._sequences.close()
            self._started.close()
            self._started = None
            stop_process()


class FrozenRole:
    """One rank of a model without an optimizer; subclasses start the engine."""

    _started: FrozenEngine | None = None
    _sequences: Sequences = WholeSequences()

    def close(self) -> None:
        """Leave the process group; the role is of no use afterwards."""
        if self._started is not None:
            self._sequences.close()
            self._started.close()
            self._started = None
            stop_process()
