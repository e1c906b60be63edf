"""Values of single keys: of the key's type and within its rule, or refused in words."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlhf_ray.config.keys.foreign_values import value_hint
from rlhf_ray.config.paths import unshowable
from rlhf_ray.config.schema import Key, all_keys
from rlhf_ray.config.setting import lost_number, not_text

# Longer values are cut in messages.
_MAX_SHOWN = 80
# The last part of keys whose text is one name or address.
_NAMES = frozenset({"host", "licence", "name", "python", "resume"})
_NAME_ENDINGS = ("url", "_dir", "_variable", "_name", "_column", "_path")


class WrongValueError(ValueError):
    """A value that its key does not take."""


# Recipes and command lines say the same values again and again; a refused one is not kept.
@functools.lru_cache(maxsize=4096, typed=True)
def typed_scalar(name: str, value: str | float | bool | None) -> Any:
    return typed_value(all_keys()[name], value)


def typed_value(key: Key, value: Any) -> Any:
    """The value as the key's type.

    Raises:
        WrongValueError: the value is refused; the message says why.
    """
    # OmegaConf takes any number for true, and true for 1.
    is_truth = isinstance(value, bool)
    if (key.takes(bool) and isinstance(value, int | float) and not is_truth) or (
        is_truth and (key.takes(int) or key.takes(float)) and not key.takes(bool)
    ):
        raise WrongValueError(f"{key.name}={shown(value)}: must be {_expected(key)}")
    if isinstance(value, str) and (problem := _unshowable(key, value)):
        raise WrongValueError(f"{key.name}={shown(value)}: {problem}")
    if key.takes(float) and (problem := _lost(value)):
        raise WrongValueError(f"{key.name}={shown(value)}: {problem}")
    if problem := _number_as_text(key, value):
        raise WrongValueError(f"{key.name}={shown(value)}: {problem}")
    field = _typed_field(key.name)
    try:
        OmegaConf.update(field, "value", value, merge=False)
    except OmegaConfBaseException as error:
        expected = _expected(key, value)
        raise WrongValueError(f"{key.name}={shown(value)}: must be {expected}") from error
    found = field["value"]
    if OmegaConf.is_config(found):
        found = OmegaConf.to_object(found)
    violation = key.setting.violation(found)
    if violation is not None:
        unit = f" ({key.setting.unit})" if key.setting.unit else ""
        hint = value_hint(key.name, found, key.setting)
        raise WrongValueError(f"{key.name}={shown(value)}: {violation}{unit}{hint}")
    return found


def _lost(value: Any) -> str | None:
    """The problem with a number that becomes another as a float, or None."""
    if isinstance(value, str):
        return lost_number(value)
    # As text a whole number of any size is exact.
    is_other = isinstance(value, int) and (abs(value) > 2**1023 or float(value) != value)
    if not is_other:
        return None
    return "a number here keeps 15 to 17 digits, and would not be this one; write it with fewer"


def _number_as_text(key: Key, value: Any) -> str | None:
    """The problem with a number or truth where text is wanted; None without one.

    Values of the command line are text already.
    """
    values = [value] if key.is_text and not (key.takes(int) or key.takes(float)) else []
    if isinstance(value, list) and key.type == list[str]:
        values = value
    elif isinstance(value, dict) and key.type == dict[str, str]:
        values = list(value.values())
    wrong = next((item for item in values if isinstance(item, int | float)), None)
    return None if wrong is None else not_text(wrong)


def _unshowable(key: Key, value: str) -> str | None:
    """The problem with a text that is a name, an address or a path, or None."""
    last = key.name.rpartition(".")[2]
    is_name = key.setting.is_path or last in _NAMES or last.endswith(_NAME_ENDINGS)
    return unshowable(value) if is_name else None


@functools.cache
def _typed_field(name: str) -> DictConfig:
    """A structured configuration with one field, `value`, of the key's type."""
    field = ("value", all_keys()[name].type, dataclasses.field(default=MISSING))
    return OmegaConf.structured(dataclasses.make_dataclass("Typed", [field]))


def _expected(key: Key, value: Any = "") -> str:
    words = key.type_words()
    if words.startswith("list"):
        return f"a {words}, as in '{key.name}=[a,b]'"
    if key.is_mapping:
        return f"a {words}, as in '{key.name}={{a:1,b:2}}'"
    if value is None and words == "text":
        return "text, in quotes where the text is null"
    return words if words.startswith(("true", "text")) else f"a {words}"


def shown(value: Any) -> str:
    """Format a value as on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
