"""Weights of a frozen model that follow those of another: buckets in, a moving average kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.ema import moving_average
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.publish.bucket import WeightBucket, unpack
from rlhf_ray.training.engine.checkpoint import (
    CheckpointFacts,
    read_facts,
    read_parts,
    write_facts,
    write_parts,
)
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.shards import Shard, release_gathered, weight_shard, whole_shape
from rlhf_ray.training.weights.named import distinct_tensors

_MAX_NAMES = 3
_WAY_OUT = (
    "a reference that moves has to be of the same architecture as the policy: choose another "
    "reference.path, or set algorithm.reference_every to 0"
)

Shapes = dict[str, tuple[int, ...]]


class MovingWeights:
    """The parts of a model's weights that this rank holds, and their moving average.

    A refresh is `begin`, then `load` with every bucket, then `finish`. No rank talks to another:
    each gets whole tensors and keeps its own part of them.

    Where the average has to be finer than the weights (`decay` above 0, weights in bfloat16),
    it is kept beside them in float32. Saved buffers are no weights, and are copied.

    Args:
        model: whole on every rank, or sharded by ZeRO-3.
        decay: see `moving_average`.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self._tensors = distinct_tensors(model)
        self._decay = decay
        self._expected: set[str] | None = None
        self._masters = {
            name: weight_shard(tensor).values.float()
            for name, tensor in self._tensors.items()
            if decay > 0 and isinstance(tensor, nn.Parameter) and tensor.dtype != torch.float32
        }

    def check(self, shapes: Shapes) -> None:
        """Refuse to follow a model with such weights where it has others.

        Raises:
            ValueError: says which ones.
        """
        mine = {name: whole_shape(tensor) for name, tensor in self._tensors.items()}
        problems = [
            _listed("the policy has no", [name for name in mine if name not in shapes]),
            _listed("the reference has no", [name for name in shapes if name not in mine]),
            _listed(
                "different shapes:",
                [
                    f"{name} {list(shapes[name])} of the policy, {list(shape)} of the reference"
                    for name, shape in mine.items()
                    if name in shapes and shapes[name] != shape
                ],
            ),
        ]
        found = [problem for problem in problems if problem]
        if found:
            raise ValueError(f"the reference cannot follow: {'; '.join(found)}; {_WAY_OUT}")

    def begin(self) -> None:
        """All weights are about to come, each once."""
        self._expected = set(self._tensors)
        for tensor in self._tensors.values():
            release_gathered(tensor)

    @torch.no_grad()
    def load(self, bucket: WeightBucket) -> None:
        """Take in some of the weights.

        Raises:
            ValueError: the bucket has a weight that this model does not have, has in another
                shape, or has got already; nothing of the bucket is taken in then.
        """
        assert self._expected is not None, "call begin() first"
        for name, shape in zip(bucket.names, bucket.shapes, strict=True):
            self._check_arrival(name, shape)
        for name, latest in unpack(bucket):
            self._move(name, latest)
            self._expected.remove(name)

    def finish(self) -> None:
        """All weights have come.

        Raises:
            ValueError: some have not.
        """
        assert self._expected is not None, "call begin() first"
        if self._expected:
            missing = [name for name in self._tensors if name in self._expected]
            raise ValueError(f"{_listed('the policy did not send', missing)}; {_WAY_OUT}")
        self._expected = None

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's part of the average by name: float32 where it is kept so."""
        shards = {name: weight_shard(tensor) for name, tensor in self._tensors.items()}
        return {name: self._masters.get(name, shard.values) for name, shard in shards.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, on the same rank of as many.

        Raises:
            ValueError: it is of a model with other weights, or sharded in another way.
        """
        here = {name: tensor.numel() for name, tensor in self.state_dict().items()}
        there = {name: tensor.numel() for name, tensor in state.items()}
        if here != there:
            raise ValueError(
                f"the saved reference has {sum(there.values())} numbers in {len(there)} weights "
                f"on this rank, and this one {sum(here.values())} in {len(here)}, or they differ "
                f"in name or size; {_WAY_OUT}"
            )
        for name, tensor in self._tensors.items():
            release_gathered(tensor)
            weight_shard(tensor).values.copy_(state[name])
            if name in self._masters:
                self._masters[name].copy_(state[name])

    def _check_arrival(self, name: str, shape: tuple[int, ...]) -> None:
        assert self._expected is not None
        if name not in self._tensors:
            raise ValueError(f"the policy sent {name}, which the reference has not; {_WAY_OUT}")
        here = whole_shape(self._tensors[name])
        if here != shape:
            raise ValueError(
                f"the policy sent {name} as {list(shape)}, and the reference has it as "
                f"{list(here)}; {_WAY_OUT}"
            )
        if name not in self._expected:
            raise ValueError(f"the policy sent {name} twice in one refresh")

    def _move(self, name: str, latest: Tensor) -> None:
        tensor: Any = self._tensors[name]
        shard: Shard = weight_shard(tensor)
        mine = shard.of(latest)
        if not isinstance(tensor, nn.Parameter):
            shard.values.copy_(mine)
            return
        average = self._masters.get(name, shard.values)
        average.copy_(moving_average(average, mine, decay=self._decay))
        if name in self._masters:
            shard.values.copy_(average)


def _listed(words: str, names: list[str]) -> str:
    """The words and the first of the names; empty without names."""
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{words} {', '.join(names[:_MAX_NAMES])}{more}"


def save_moving(folder: Path, weights: MovingWeights, role: RoleConfig) -> None:
    """Write the average, so that a later one equals that of a run that was not interrupted.

    Every rank calls it; the folder is complete when all have returned. Ranks that hold the whole
    of the weights leave the writing to rank 0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if rank() == _owner(role):
        write_parts(_file(folder, role), weights.state_dict())
    if rank() == 0:
        facts = CheckpointFacts(
            world_size=world_size(),
            zero_stage=role.zero_stage,
            dtype=role.dtype,
            optimizer_step=0,
        )
        write_facts(folder, facts)
    torch.distributed.barrier()


def load_moving(folder: Path, weights: MovingWeights, role: RoleConfig) -> None:
    """Read what `save_moving` wrote; every rank calls it.

    Raises:
        ValueError: it is incomplete, of another number of ranks, ZeRO stage or dtype, or of a
            model with other weights.
    """
    read_facts(folder, world_size=world_size(), zero_stage=role.zero_stage, dtype=role.dtype)
    weights.load_state_dict(read_parts(_file(folder, role)))


def _owner(role: RoleConfig) -> int:
    """The rank whose file has this rank's part."""
    return rank() if role.zero_stage == 3 else 0


def _file(folder: Path, role: RoleConfig) -> Path:
    return folder / f"moving_rank_{_owner(role):05d}.pt"
