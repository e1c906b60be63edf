"""Single values of numpy, torch and pandas as Python's own.

Code of users hands over either. Nothing is imported here: a value of a library exists only where
the library has been imported, and the process that runs reward functions must not import torch.
"""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Any


def python_value(value: Any) -> Any:
    """The number, truth value or text in a single value of numpy or torch; any other unchanged.

    A 0-dimensional array or tensor is a single value; one with dimensions is not.
    """
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        if isinstance(value, numpy.ndarray) and value.ndim == 0:
            value = value[()]
        if isinstance(value, numpy.longdouble):  # `item` would return it as it is
            return float(value)
        if isinstance(value, numpy.bool_ | numpy.number | numpy.str_):
            return value.item()
    if torch is not None and isinstance(value, torch.Tensor) and value.ndim == 0:
        return value.item()
    return value


def is_missing(value: Any) -> bool:
    """Whether a value stands for a missing one: None, NaN, or a missing value of pandas."""
    if value is None or (isinstance(value, float) and value != value):
        return True
    pandas = sys.modules.get("pandas")
    return pandas is not None and (value is pandas.NA or value is pandas.NaT)


class WrittenFloat(float):
    """A float that JSON writes with other digits than Python: 0.10, 1e16, 9007199254740993.0.

    It counts, compares and hashes as the float, and JSON writers write it as the float.
    """

    __slots__ = ("written",)

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        made = super().__new__(cls, written)
        made.written = written
        return made

    def __repr__(self) -> str:
        return self.written

    def __reduce__(self) -> tuple[type[WrittenFloat], tuple[str]]:
        return WrittenFloat, (self.written,)


def float_of_json(written: str) -> float:
    """The number of JSON with a point or an exponent, for `parse_float`; keeps its digits."""
    value = float(written)
    # Nearly all numbers are written by Python, or as Python would, and need no object of ours.
    return value if repr(value) == written else WrittenFloat(written)


def lost_number_in(value: Any) -> WrittenFloat | None:
    """The first number in a value of JSON whose digits a float does not keep; None without one.

    0.10 and 1e16 are the floats that they are written as; 9007199254740993.0 is not.
    """
    if isinstance(value, WrittenFloat):
        is_kept = Decimal(value.written) == Decimal(float.__repr__(value))
        return None if is_kept else value
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next((found for item in inner if (found := lost_number_in(item)) is not None), None)
    return None


def number_text(value: float | Decimal) -> str:
    """A number as text, with the digits that it is written with, if they are known.

    A whole number is without ".0", as far as floats hold whole numbers exactly: a column of whole
    numbers with a missing value is one of floats in pandas and Arrow.
    """
    if isinstance(value, WrittenFloat):
        return value.written
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if is_whole else value)


def widened(value: Any, narrow: Any) -> Any:
    """The float that is written as a float of fewer bits is: 0.1 and not 0.10000000149011612.

    Args:
        value: a float, whose value the narrow type holds, or anything else, which stays.
        narrow: the type of numpy, float32 or float16.
    """
    return float(str(narrow(value))) if isinstance(value, float) else value
