"""The EMA of the policy's weights that a reference scores with, updated bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.ema import moving_average
from rlhf_ray.checkpoint_files.facts import SLICES, CheckpointFacts, write_facts
from rlhf_ray.checkpoint_files.slice_index import read_indexes
from rlhf_ray.config.groups.training import RoleConfig
from rlhf_ray.publish.bucket import WeightBucket, unpack
from rlhf_ray.training.engine.checkpoint import read_earlier_parts, read_facts
from rlhf_ray.training.engine.ranks import rank, world_size
from rlhf_ray.training.engine.shards import (
    Shard,
    distinct_tensors,
    release_gathered,
    weight_shard,
    whole_shape,
)
from rlhf_ray.training.engine.state.state_files import read_parts, write_parts
from rlhf_ray.training.engine.state.state_parts import StatePart, own_share, plain_part

_MAX_NAMES = 3
_PREFIX = "moving"
_FIX = (
    "a reference that follows the policy needs the same architecture: choose another "
    "reference.path, or set algorithm.reference_every to 0"
)

Shapes = dict[str, tuple[int, ...]]


class EmaReference:
    """This rank's part of the reference's weights, an EMA of the policy's.

    An update is `begin`, then `load` with every bucket, then `finish`. Ranks do not communicate:
    each gets whole tensors and keeps its own part of them. So no rank holds more than one bucket of
    a large policy at a time.

    Weights in bfloat16 have a float32 EMA next to them if `decay` is above 0. With a decay of 0.999
    an update changes most weights by less than bfloat16 can represent, and the EMA would stand
    still. Saved buffers are copied, not averaged.

    Args:
        model: the reference, whole on every rank or sharded by ZeRO-3.
        decay: weight of the past; 0 copies the policy. See `moving_average`.
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
        """Check that the policy's weights are the reference's, before any has been sent.

        Raises:
            ValueError: names or shapes differ; the message lists them.
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
            raise ValueError(f"the reference cannot follow: {'; '.join(found)}; {_FIX}")

    def begin(self) -> None:
        """Begin an update, in which every weight arrives once."""
        self._expected = set(self._tensors)
        # ZeRO-3 keeps small weights gathered after a forward pass. Scores after this update would
        # still use those copies.
        for tensor in self._tensors.values():
            release_gathered(tensor)

    @torch.no_grad()
    def load(self, bucket: WeightBucket) -> None:
        """Average a bucket of the policy's weights in.

        Raises:
            ValueError: the bucket has a weight that the reference does not have, has in another
                shape, or has received already. The bucket is then ignored.
        """
        assert self._expected is not None, "call begin() first"
        # All of the bucket is checked before any of it is averaged: a half-applied bucket would
        # leave weights of two versions.
        for name, shape in zip(bucket.names, bucket.shapes, strict=True):
            self._check_arrival(name, shape)
        for name, latest in unpack(bucket):
            self._update(name, latest)
            self._expected.remove(name)

    def finish(self) -> None:
        """End an update.

        Raises:
            ValueError: some weights have not arrived.
        """
        assert self._expected is not None, "call begin() first"
        if self._expected:
            missing = [name for name in self._tensors if name in self._expected]
            raise ValueError(f"{_listed('the policy did not send', missing)}; {_FIX}")
        self._expected = None

    def state_dict(self) -> dict[str, Tensor]:
        """This rank's part of the EMA by name: the float32 one if there is one."""
        shards = {name: weight_shard(tensor) for name, tensor in self._tensors.items()}
        return {name: self._masters.get(name, shard.values) for name, shard in shards.items()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict` of the same rank of as many ranks.

        Raises:
            ValueError: it is of a model with other weights, or sharded differently.
        """
        here = {name: tensor.numel() for name, tensor in self.state_dict().items()}
        there = {name: tensor.numel() for name, tensor in state.items()}
        if here != there:
            raise ValueError(
                f"the saved reference has {sum(there.values())} elements in {len(there)} weights "
                f"on this rank, and this one {sum(here.values())} in {len(here)}, or they differ "
                f"in name or size; {_FIX}"
            )
        for name, own in self.state_dict().items():
            own.copy_(state[name])
        self.round_weights()

    def parts(self) -> list[StatePart]:
        """The values of `state_dict` with their places, for a checkpoint."""
        return [
            plain_part(name, tensor, self._masters.get(name))
            for name, tensor in self._tensors.items()
        ]

    @torch.no_grad()
    def round_weights(self) -> None:
        """Put new values of `parts` into the weights that compute."""
        for name, tensor in self._tensors.items():
            release_gathered(tensor)
            if name in self._masters:
                weight_shard(tensor).values.copy_(self._masters[name])

    def _check_arrival(self, name: str, shape: tuple[int, ...]) -> None:
        assert self._expected is not None
        if name not in self._tensors:
            raise ValueError(f"the policy sent {name}, which the reference has not; {_FIX}")
        here = whole_shape(self._tensors[name])
        if here != shape:
            raise ValueError(
                f"the policy sent {name} as {list(shape)}, and the reference has it as "
                f"{list(here)}; {_FIX}"
            )
        if name not in self._expected:
            raise ValueError(f"the policy sent {name} twice in one refresh")

    def _update(self, name: str, latest: Tensor) -> None:
        tensor: Any = self._tensors[name]
        shard: Shard = weight_shard(tensor)
        mine = shard.of(latest)
        # Buffers are counters, tables and the like: an average of them means nothing.
        if not isinstance(tensor, nn.Parameter):
            shard.values.copy_(mine)
            return
        average = self._masters.get(name, shard.values)
        average.copy_(moving_average(average, mine, decay=self._decay))
        # The forward pass reads the weights themselves: round the float32 EMA into them.
        if name in self._masters:
            shard.values.copy_(average)


def _listed(words: str, names: list[str]) -> str:
    """The words, then the first names and the number of the others; empty without names."""
    if not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{words} {', '.join(names[:_MAX_NAMES])}{more}"


def snapshot_ema_reference(
    weights: EmaReference, role: RoleConfig, *, copies: bool
) -> Callable[[Path], None]:
    """A function that writes this rank's share of the EMA to a folder; see `TrainedRole.snapshot`.

    A resumed run continues exactly.
    """
    parts = [own_share(part) for part in weights.parts()]
    if copies:
        parts = [part.copied() for part in parts]
    own = rank()
    facts = CheckpointFacts(
        world_size=world_size(),
        zero_stage=role.zero_stage,
        dtype=role.dtype,
        optimizer_step=0,
        format=SLICES,
        tensor_parallel_size=role.tensor_parallel_size,
    )

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_parts(folder, _PREFIX, own, parts)
        if own == 0:
            write_facts(folder, facts)

    return write


def load_ema_reference(folder: Path, weights: EmaReference, role: RoleConfig) -> None:
    """Read the files of `snapshot_ema_reference`, of any number of ranks; all ranks call it.

    Raises:
        ValueError: they are incomplete, of another dtype, or of a model with other weights.
    """
    facts = read_facts(folder, role)
    if facts.layout_is_fixed:
        # A release before: below ZeRO-3 every rank held the same, and rank 0 wrote it.
        writer = rank() if role.zero_stage == 3 else 0
        earlier = folder / f"{_PREFIX}_rank_{writer:05d}.pt"
        weights.load_state_dict(read_earlier_parts(earlier))
        return
    read_parts(folder, read_indexes(folder, _PREFIX, facts.world_size), weights.parts())
    weights.round_weights()
