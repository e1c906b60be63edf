"""Weights of a large model in several files, which several ranks write at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from rlhf_ray.checkpoint_files.background import BackgroundWrite

INDEX_FILE = "model.safetensors.index.json"
# Name, dtype and whole shape of a tensor; see `publish.plan.WeightSpec`.
Spec = tuple[str, str, tuple[int, ...]]
_NEVER_S = 10.0**9  # The ranks have a deadline of their own.


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePlan:
    """The files of a model, in the order in which its tensors come.

    Attributes:
        files: names of the tensors in each file, as ranks know them.
        saved_names: of each tensor in the hub's format; several where the model joins what the
            format has apart, none of what is not saved.
        num_bytes: of all saved tensors.
    """

    files: tuple[tuple[str, ...], ...]
    saved_names: Mapping[str, tuple[str, ...]]
    num_bytes: int

    def file_name(self, number: int) -> str:
        """The name of a file, as transformers counts them."""
        return f"model-{number + 1:05d}-of-{len(self.files):05d}.safetensors"


def plan_files(model: Any, specs: Sequence[Spec], *, max_file_bytes: int) -> FilePlan | None:
    """Divide the tensors of a model among files; None for a model of one file.

    None also where the hub's format joins tensors that the model has apart: such a model has to be
    whole when it is written.

    Args:
        specs: of all tensors, in the order in which they will come.
    """
    ignored = set(model._keys_to_ignore_on_save or ())
    saved = [spec for spec in specs if spec[0] not in ignored]
    sizes = {name: _bytes(dtype, shape) for name, dtype, shape in saved}
    if sum(sizes.values()) <= max_file_bytes:
        return None
    names = _saved_names(model, saved)
    if names is None:
        return None
    files: list[list[str]] = [[]]
    size = 0
    for name, needed in sizes.items():
        if files[-1] and size + needed > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += needed
    return FilePlan(
        files=tuple(map(tuple, files)), saved_names=names, num_bytes=sum(sizes.values())
    )


def write_files(
    named: Iterable[tuple[str, Tensor]],
    plan: FilePlan,
    model: Any,
    folder: Path,
    *,
    rank: int,
    world_size: int,
) -> None:
    """Write this rank's files: file i is rank i's, modulo the number of ranks.

    Runs `named` to its end, also after a failure, because its steps may be collective operations.
    Holds at most two files: one that fills, and one that a thread writes meanwhile.

    Raises:
        Exception: the first failure to write.
    """
    file_of = {name: number for number, names in enumerate(plan.files) for name in names}
    filling: dict[str, Tensor] = {}
    writing = BackgroundWrite[int](lambda: 0)
    failures: list[Exception] = []
    for name, tensor in named:
        number = file_of.get(name)
        if number is None or number % world_size != rank or failures:
            continue
        filling[name] = tensor.detach().to("cpu", copy=True)
        if len(filling) == len(plan.files[number]):
            _wait(writing, failures)
            writing = _written(model, filling, folder / plan.file_name(number))
            filling = {}
    _wait(writing, failures)
    if failures:
        raise failures[0]


def write_index(plan: FilePlan, folder: Path) -> None:
    """Write the file that says which tensor is in which file."""
    weight_map = {
        saved: plan.file_name(number)
        for number, names in enumerate(plan.files)
        for name in names
        for saved in plan.saved_names[name]
    }
    content = {"metadata": {"total_size": plan.num_bytes}, "weight_map": weight_map}
    text = json.dumps(content, indent=2, sort_keys=True)
    (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")


def _written(model: Any, tensors: dict[str, Tensor], path: Path) -> BackgroundWrite[int]:
    def write() -> int:
        named = revert_weight_conversion(model, tensors)
        content = {name: tensor.contiguous() for name, tensor in named.items()}
        save_file(content, path, metadata={"format": "pt"})
        return len(content)

    return BackgroundWrite(write)


def _wait(writing: BackgroundWrite[int], failures: list[Exception]) -> None:
    try:
        writing.result(wait_s=_NEVER_S)
    except Exception as error:  # noqa: BLE001 - raised at the end, when no rank waits any more
        failures.append(error)


def _saved_names(model: Any, specs: Sequence[Spec]) -> dict[str, tuple[str, ...]] | None:
    """The names of each tensor in the hub's format; None if it joins tensors to one.

    Found on the device "meta": the tensors one by one and all together must give the same.
    """
    empty = {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, dtype, shape in specs
    }
    try:
        together = _shapes(revert_weight_conversion(model, dict(empty)))
        single = {name: revert_weight_conversion(model, {name: one}) for name, one in empty.items()}
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, NotImplementedError):
        return None  # A conversion that needs all of its tensors, or values.
    apart = {saved: shape for found in single.values() for saved, shape in _shapes(found).items()}
    if apart != together:
        return None
    return {name: tuple(found) for name, found in single.items()}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _bytes(dtype: str, shape: Sequence[int]) -> int:
    return torch.Size(shape).numel() * getattr(torch, dtype).itemsize
