"""The names of DeepSpeed's keys, against the classes of the installed version."""

from __future__ import annotations

from typing import Any

import pytest
from deepspeed.runtime import config as deepspeed_config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from rlhf_ray.config.deepspeed.extra import _ALIASES, ALLOWED, OWNED, UNSUPPORTED, ZERO

pytestmark = pytest.mark.stack


class Asked(dict[str, Any]):
    """A configuration that remembers for which keys it was asked."""

    seen: set[str]

    def __init__(self, *values: Any) -> None:
        super().__init__(*values)
        self.seen = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)

    def keys(self) -> Any:
        return self

    def __copy__(self) -> Asked:
        return self


def known(section: str) -> set[str]:
    """Keys of a section that have an answer here: allowed, owned, or refused with a reason."""
    prefix = f"{section}." if section else ""
    named = [
        key.removeprefix(prefix)
        for key in (*OWNED, *UNSUPPORTED)
        if key.startswith(prefix) and "." not in key.removeprefix(prefix)
    ]
    return {*named, *ALLOWED[section]}


def test_top_keys():
    asked = Asked({"train_micro_batch_size_per_gpu": 1})
    deepspeed_config.DeepSpeedConfig(asked)
    removed = set(deepspeed_config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert asked.seen - removed == known("") - {"sequence_parallel_size"}


def test_keys_of_zero():
    fields = DeepSpeedZeroConfig.model_fields
    assert {field.alias or name for name, field in fields.items()} == known(ZERO)
    aliases = {f"{ZERO}.{n}": f"{ZERO}.{f.alias}" for n, f in fields.items() if f.alias}
    assert aliases == _ALIASES
