"""Scored groups in a file: their tensors, and everything else of them as JSON.

A safetensors file holds numbers alone, so that reading one runs no code; the JSON is a tensor of
bytes in it. Values come back bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_ray.plain_files import DamagedFileError
from rlhf_ray.records.plain_prompts import plain_prompts, prompts_from_plain
from rlhf_ray.records.rollouts import GroupSteps, RolloutGroup

_PLAIN = "plain"
_TENSORS = ("lengths", "loss_mask", "generator_logprobs", "rewards")
# Ids of tokens and numbers of publishes fit 32 bits, and are most of the bytes.
_NARROWED = ("token_ids", "weight_versions")
_STEPS = ("text_ends", "rewards", "ends")
_TEXTS = ("sample_indices", "responses", "finish_reasons")


def write_groups(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Write groups without failures to one file; read back with `read_groups`."""
    tensors: dict[str, Tensor] = {}
    plain = []
    for number, group in enumerate(groups):
        assert not group.failures, "a group with failures is never kept"
        # A copy: safetensors refuses two tensors with one memory, such as a sum of one part.
        tensors |= {f"{number}:{name}": tensor.clone() for name, tensor in _tensors(group)}
        (prompt,) = plain_prompts([group.prompt])
        texts = {name: list(getattr(group, name)) for name in _TEXTS}
        plain.append({"prompt": prompt, **texts, "reward_parts": list(group.reward_parts)})
    # Names of fields are in the keys; `ensure_ascii` also writes texts that are no valid Unicode.
    content = json.dumps(plain).encode("ascii")
    tensors[_PLAIN] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    save_file(tensors, path)


def read_groups(path: Path) -> list[RolloutGroup]:
    """Read a file of `write_groups`.

    Raises:
        DamagedFileError: the file is truncated or of another kind.
        OSError: it is missing or cannot be opened.
    """
    with open(path, "rb"):
        pass  # Whether it can be opened is known apart from whether it is whole.
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            plain = json.loads(bytes(file.get_tensor(_PLAIN).numpy()))
            names = set(file.keys())
            return [_group(file, names, number, own) for number, own in enumerate(plain)]
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        reason = str(error).strip().splitlines()
        raise DamagedFileError(
            f"{path} is no file of groups, or it is damaged: {reason[0] if reason else error!r}"
        ) from None


def _tensors(group: RolloutGroup) -> Iterator[tuple[str, Tensor]]:
    for name in _TENSORS:
        yield name, getattr(group, name)
    for name in _NARROWED:
        yield name, getattr(group, name).to(torch.int32)
    if group.support_token_ids is not None:
        yield "support_token_ids", group.support_token_ids
    if group.steps is not None:
        for name in _STEPS:
            yield f"steps.{name}", getattr(group.steps, name)
    # Names of parts are users' words: the file knows them by their number.
    for number, part in enumerate(group.reward_parts.values()):
        yield f"reward_parts.{number}", part


def _group(file: Any, names: set[str], number: int, plain: dict[str, Any]) -> RolloutGroup:
    def tensor(name: str) -> Tensor:
        # A copy: the memory of the file must not be written to.
        return file.get_tensor(f"{number}:{name}").clone()

    (prompt,) = prompts_from_plain([plain["prompt"]])
    steps = None
    if f"{number}:steps.{_STEPS[0]}" in names:
        steps = GroupSteps(**{name: tensor(f"steps.{name}") for name in _STEPS})
    has_support = f"{number}:support_token_ids" in names
    parts = {name: tensor(f"reward_parts.{i}") for i, name in enumerate(plain["reward_parts"])}
    fields: dict[str, Any] = {
        **{name: tuple(plain[name]) for name in _TEXTS},
        **{name: tensor(name) for name in _TENSORS},
        **{name: tensor(name).to(torch.int64) for name in _NARROWED},
    }
    return RolloutGroup(
        prompt=prompt,
        **fields,
        support_token_ids=tensor("support_token_ids") if has_support else None,
        reward_parts=parts,
        failures=(),
        steps=steps,
    )
