"""Groups in files come back bit for bit, and damage is a sentence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray.plain_files import DamagedFileError
from rlhf_ray.records import GroupSteps, RolloutGroup
from rlhf_ray.records.group_files import read_groups, write_groups
from rlhf_ray.testing.fakes import make_group, make_prompt


def rich_group() -> RolloutGroup:
    """A group in which every field has something that could get lost."""
    prompt = dataclasses.replace(
        make_prompt(3),
        columns={"level": 3, "parts": [1.5, None]},
        messages=({"role": "user", "content": "1 + 1 = ?"},),
        tools=({"name": "add"},),
    )
    group = make_group(prompt, (0, 2), version=7, rewards=[0.1, 1 / 3])
    num_tokens = group.token_ids.shape[0]
    return dataclasses.replace(
        group,
        # A slice of more, a half of a surrogate pair, a name with any letters.
        token_ids=torch.arange(2 * num_tokens)[::2],
        generator_logprobs=torch.linspace(-3, 0, num_tokens),
        responses=("one\n", "\ud83d two"),
        reward_parts={"a/b: ü": torch.tensor([float("nan"), -0.0], dtype=torch.float64)},
        support_token_ids=torch.arange(3 * num_tokens, dtype=torch.int32).view(num_tokens, 3),
        steps=GroupSteps(
            text_ends=torch.arange(num_tokens, dtype=torch.int32),
            rewards=torch.linspace(0, 1, num_tokens, dtype=torch.float64),
            ends=torch.arange(num_tokens) % 3 == 0,
        ),
    )


def plain(value: Any) -> Any:
    """A value whose parts can be compared: bits of tensors, and their types."""
    if isinstance(value, Tensor):
        return value.dtype, list(value.shape), value.contiguous().numpy().tobytes()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return type(value), {field.name: plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def test_groups_come_back_bit_for_bit(tmp_path: Path):
    groups = [rich_group(), make_group(make_prompt(0), (), version=0, rewards=[])]
    write_groups(tmp_path / "groups", groups)
    again = read_groups(tmp_path / "groups")
    assert [plain(group) for group in again] == [plain(group) for group in groups]
    again[0].token_ids[0] = 5  # It is no memory of the file.


def test_a_file_runs_no_code_and_damage_is_named(tmp_path: Path):
    path = tmp_path / "groups"
    write_groups(path, [rich_group()])
    content = path.read_bytes()
    # A header of eight bytes with a length, then JSON: no pickle.
    assert content[8:9] == b"{"
    for damaged in (content[:-5], b"", content[: len(content) // 2], b"x" * 100):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="groups is no file of groups"):
            read_groups(path)
