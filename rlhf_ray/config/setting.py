"""Fields of the configuration: default, help, unit and rule in one place.

Nothing here imports torch or Hydra: the schema loads in milliseconds, so that a wrong
configuration is refused before anything heavy starts.
"""

from __future__ import annotations

import copy
import dataclasses
import decimal
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_METADATA_KEY = "rlhf_ray"

# Largest values where a key states none; by the last part of the key's name.
_BY_NAME: dict[str, float] = {
    # Each one is a process, or a bundle of the plan.
    "num_workers": 16_384,
    "num_engines": 16_384,
    "num_ranks": 16_384,
    "replicas": 16_384,
    "max_replicas": 16_384,
    "tensor_parallel_size": 1_024,
    "sequence_parallel_size": 1_024,
    "pipeline_parallel_size": 1_024,
    "data_parallel_size": 1_024,
    "cpu_threads": 4_096,
    "num_cpus": 4_096,
    # They are multiplied with each other.
    "prompts_per_step": 10_000_000,
    "batch_size": 10_000_000,
    "samples_per_prompt": 100_000,
    "samples": 100_000,
    "num_samples": 100_000,
    "num_mini_batches": 100_000,
    "num_epochs": 100_000,
    "num_probe_sequences": 100_000,
    "num_resamples": 10_000_000,
    "learning_rate": 100,
    "weight_decay": 100,
    "split_seed": 2**63 - 1,
}
_BY_UNIT: dict[str, float] = {
    "seconds": 100_000_000,  # Three years.
    "rows": 10**12,
    "samples": 10**12,
    "bytes": 10**15,
}
_OTHERS = 10**9
# A number that stands alone, as YAML and Hydra's grammar read it. Without the exponent it is
# between the bounds of floats, unless it has hundreds of digits.
_NUMBER = re.compile(r"(?<![\w./+-])[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][+-]?\d+)?(?![\w./:])")
_QUOTED = re.compile(r"""(['"])(?:\\.|(?!\1).)*\1""", re.DOTALL)
# What a float keeps of a number's digits, with room for the last one.
_KEPT_DIGITS = decimal.Decimal("1e-12")
_MAX_NUMBER_SHOWN = 40


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Help, unit and rule of one field; type and default are the dataclass's.

    Bounds are inclusive (`minimum`, `maximum`) or exclusive (`above`, `below`);
    an unset optional value (`None`) passes every bound.

    Attributes:
        is_path: the value may name a local file or folder, which is made absolute if it exists.
        keywords: values with a meaning of their own, never taken for a path.
    """

    help: str
    unit: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    is_path: bool = False
    keywords: tuple[str, ...] = ()

    def violation(self, value: Any) -> str | None:
        """The requirement that `value` violates, in words, or None."""
        if value is None:
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return "must be a finite number"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(str(choice) for choice in self.choices)}"
        bounds = (
            (self.minimum, lambda bound: value >= bound, "at least"),
            (self.maximum, lambda bound: value <= bound, "at most"),
            (self.above, lambda bound: value > bound, "greater than"),
            (self.below, lambda bound: value < bound, "less than"),
        )
        broken = [
            f"{words} {bound}"
            for bound, holds, words in bounds
            if bound is not None and not holds(bound)
        ]
        return f"must be {' and '.join(broken)}" if broken else None

    def rule(self) -> str:
        """The rule in words; empty if every value of the type is valid."""
        if self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        bounds = (
            (self.minimum, ">="),
            (self.above, ">"),
            (self.maximum, "<="),
            (self.below, "<"),
        )
        return ", ".join(f"{sign} {bound}" for bound, sign in bounds if bound is not None)


def setting(default: Any, help: str, **rule: Any) -> Any:
    """Define a dataclass field with default, help text, unit and rule.

    Mutable defaults (lists, dicts) are copied for every instance.
    """
    metadata = {_METADATA_KEY: Setting(help=help, **rule)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def setting_of(field: dataclasses.Field[Any]) -> Setting | None:
    """The `Setting` of a dataclass field, or None for a nested group."""
    return field.metadata.get(_METADATA_KEY)


def largest(name: str, unit: str) -> float:
    """The largest value of a number whose key states none: far above any real run, and finite.

    A number above it is a slip of the keyboard, and would end as an overflow, an endless wait or
    all memory of the machine.

    Args:
        name: dotted name of the key.
        unit: of its setting.
    """
    last = name.rpartition(".")[2]
    return _BY_NAME.get(last, _BY_UNIT.get(unit, _OTHERS))


def not_text(value: Any) -> str:
    """The problem with a value of YAML or Python where text is wanted, and the way out.

    YAML reads 1.10 as 1.1, 007 as 7, `no` as false and 2026-01-31 as a date.
    """
    if isinstance(value, list | tuple | dict):
        return f"must be text, and is a {type(value).__name__}"
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return f"{shown} is no text, and was perhaps written otherwise; put it in quotes"


def value_of_no_key(value: Any) -> Any:
    """The first part of a value that no key takes, such as a date of YAML; None without one."""
    if isinstance(value, Mapping):
        return next((part for item in value.values() if (part := value_of_no_key(item))), None)
    if isinstance(value, list | tuple):
        return next((part for item in value if (part := value_of_no_key(item))), None)
    is_plain = value is None or isinstance(value, str | int | float | bytes | Path)
    return None if is_plain else value


def lost_number(text: str) -> str | None:
    """The problem with a number whose value a float does not have; None for any other text."""
    plain = text.replace("_", "").strip()
    try:
        read, exact = float(plain), _exact(plain)
    except (decimal.InvalidOperation, ValueError, OverflowError):
        return None
    if not exact.is_finite():
        return None
    shown = text if len(text) <= _MAX_NUMBER_SHOWN else text[:_MAX_NUMBER_SHOWN] + "..."
    if read in (float("inf"), float("-inf")):
        return f"{shown} is too large for a number here, and would be read as infinite"
    with decimal.localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, decimal.MIN_EMIN, decimal.MAX_EMAX
        if abs(decimal.Decimal(read) - exact) > abs(exact) * _KEPT_DIGITS:
            # Python writes the float nearest to 5e-324 as 5e-324, which it is not.
            written = f"{decimal.Decimal(read):.17g}" if read else "0"
            return (
                f"{shown} is too near to 0 for a number here: a float of this size keeps too few "
                f"digits, and would be {written}"
            )
    return None


def _exact(text: str) -> decimal.Decimal:
    """The number; an exponent beyond all bounds is as good as one of a million."""
    digits, sign, exponent = text.lower().partition("e")
    if len(exponent) > 7:
        exponent = "-1000000" if exponent.startswith("-") else "1000000"
    return decimal.Decimal(digits + sign + exponent)


def lost_numbers(text: str) -> Iterator[str]:
    """The problems with the numbers of a text outside of quotes."""
    for found in _NUMBER.finditer(_QUOTED.sub("''", text)):
        # Only these can be lost, and most texts have none.
        if found[2] is not None or len(found[0]) > 300:
            problem = lost_number(found[0])
            if problem is not None:
                yield problem


def lost_numbers_of_yaml(text: str) -> Iterator[tuple[int, str]]:
    """The same for the text of a YAML file, each with the number of its line."""
    for number, line in enumerate(text.splitlines(), start=1):
        for problem in lost_numbers(re.sub(r"(^|\s)#.*", "", line)):
            yield number, problem
