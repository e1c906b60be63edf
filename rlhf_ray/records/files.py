"""Records in files that hold plain data only, no pickled code."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.plain_files import load_plain
from rlhf_ray.records import (
    Experience,
    FailureKind,
    GroupSteps,
    PreferenceSamples,
    Prompt,
    RolloutGroup,
    SampleFailure,
    TokenValues,
)

_RECORDS: dict[str, type] = {
    record.__name__: record
    for record in (Prompt, SampleFailure, GroupSteps, RolloutGroup, TokenValues, Experience)
}
# Their values are distinct words, so a file needs no name of the enum.
_ENUMS: dict[str, enum.Enum] = {
    str(member): member for kind in (FailureKind, OldLogprobsFrom) for member in kind
}


def save_records(records: list[Any], path: Path) -> None:
    """Write records to one file; read back with `load_records`."""
    torch.save([_plain(record) for record in records], path)


def load_records(path: Path) -> list[Any]:
    """Read a file of `save_records`, also of the release before, whose fields had other names.

    A file that holds anything but data is refused.
    """
    return [_restore(item) for item in load_plain(path)]


def load_preference_samples(fields: Mapping[str, Any]) -> PreferenceSamples:
    """The samples from their saved fields; the release before saved an empty `kept_token_ids`."""
    return PreferenceSamples(**{k: v for k, v in fields.items() if k != "kept_token_ids"})


def _plain(value: Any) -> Any:
    """Convert records to dicts that `torch.load(weights_only=True)` accepts."""
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
            return _ENUMS[value["__enum__"]]
        items = {key: _restore(item) for key, item in value.items() if key != "__record__"}
        if "__record__" not in value:
            return items
        name = value["__record__"]
        return _RECORDS[name](**_CONVERTERS.get(name, dict)(items))
    if isinstance(value, tuple | list):
        return type(value)(_restore(item) for item in value)
    return value


def _convert_group(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert a `RolloutGroup`, whose steps were three tensors, each empty if absent."""
    fields = _renamed(fields, {"kept_token_ids": "support_token_ids"})
    if "text_ends" not in fields:
        return fields
    parts = {name: fields.pop(old) for old, name in _OLD_STEP_FIELDS.items()}
    has_steps = any(part.numel() for part in parts.values())
    num_tokens = fields["token_ids"].shape[0]
    filled = {
        # The rewards of an unscored group were empty; now they are 0.
        name: part if part.numel() else part.new_zeros(num_tokens)
        for name, part in parts.items()
    }
    return {**fields, "steps": GroupSteps(**filled) if has_steps else None}


def _convert_values(fields: dict[str, Any]) -> dict[str, Any]:
    return _renamed(fields, {"after": "final_values", "kept_logprobs": "support_logprobs"})


def _convert_experience(fields: dict[str, Any]) -> dict[str, Any]:
    if "old_is_current" not in fields:
        return fields
    fields = _renamed(fields, _OLD_EXPERIENCE_FIELDS)
    # The loss reads `old_logprobs` for both other sources.
    in_update = fields.pop("old_is_current")
    source = (
        OldLogprobsFrom.LEARNER_IN_UPDATE if in_update else OldLogprobsFrom.LEARNER_BEFORE_UPDATE
    )
    return {**fields, "old_logprobs_from": source}


def _renamed(fields: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Fields under their new names; an empty tensor that meant an absent field becomes None."""
    return {
        names.get(name, name): None if name in _EMPTY_IF_ABSENT and _is_empty(value) else value
        for name, value in fields.items()
    }


def _is_empty(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 0


_EMPTY_IF_ABSENT = ("after", "kept_token_ids", "kept_logprobs", "reference_kept_logprobs")
_OLD_STEP_FIELDS = {"text_ends": "text_ends", "step_rewards": "rewards", "step_ends": "ends"}
_OLD_EXPERIENCE_FIELDS = {
    "weights": "importance_weights",
    "chosen": "covariance_selected",
    "kept_token_ids": "support_token_ids",
    "reference_kept_logprobs": "reference_support_logprobs",
}
_CONVERTERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "RolloutGroup": _convert_group,
    "TokenValues": _convert_values,
    "Experience": _convert_experience,
}
