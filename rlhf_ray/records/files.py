"""Records in a file: nothing in it but data."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.records import (
    Experience,
    FailureKind,
    Prompt,
    RolloutGroup,
    SampleFailure,
    TokenValues,
)

_RECORDS: dict[str, type] = {}


def _plain(value: Any) -> Any:
    """Records to dicts that `torch.load(weights_only=True)` accepts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"__record__": type(value).__name__, **fields}
    if isinstance(value, enum.Enum):
        return {"__enum__": str(value)}
    if isinstance(value, tuple | list):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _restore(value: Any) -> Any:
    if isinstance(value, dict):
        if "__enum__" in value:
            return FailureKind(value["__enum__"])
        items = {key: _restore(item) for key, item in value.items() if key != "__record__"}
        return _RECORDS[value["__record__"]](**items) if "__record__" in value else items
    if isinstance(value, tuple | list):
        return type(value)(_restore(item) for item in value)
    return value


_RECORDS.update(
    {
        record.__name__: record
        for record in (Prompt, SampleFailure, RolloutGroup, TokenValues, Experience)
    }
)


def save_records(records: list[Any], path: Path) -> None:
    """Write records to one file; read back with `load_records`. No pickled code inside."""
    torch.save([_plain(record) for record in records], path)


def load_records(path: Path) -> list[Any]:
    """Read what `save_records` wrote. Refuses a file that holds anything but data."""
    return [_restore(item) for item in torch.load(path, weights_only=True)]
