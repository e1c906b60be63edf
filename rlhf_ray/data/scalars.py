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


def number_text(value: float | Decimal) -> str:
    """A number as text: a whole one without ".0", as far as floats hold whole numbers exactly.

    A column of whole numbers with a missing value is one of floats in pandas and Arrow.
    """
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if is_whole else value)


def widened(value: Any, narrow: Any) -> Any:
    """The float that is written as a float of fewer bits is: 0.1 and not 0.10000000149011612.

    Args:
        value: a float, whose value the narrow type holds, or anything else, which stays.
        narrow: the type of numpy, float32 or float16.
    """
    return float(str(narrow(value))) if isinstance(value, float) else value
