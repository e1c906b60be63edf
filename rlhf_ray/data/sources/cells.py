"""Values of cells: JSON with a reason for every refusal, and values of libraries as plain ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rlhf_ray.data.rows import BrokenRow, Row, row_from, shown
from rlhf_ray.data.scalars import is_missing, python_value, widened

# Deeper rows are no data, and would end templates and JSON writers by their depth.
MAX_DEPTH = 64


class BadValue(ValueError):  # noqa: N818 - it reads as a sentence where it is raised
    """A row holds a value that cannot be used; the message ends a sentence about the row."""


def parse_json(text: str) -> Any:
    """Parse the JSON of one row; NaN is null, because it stands for a missing number.

    Raises:
        BadValue: the text is not JSON, too deep, has a number that is too long, a name twice in one
            object, or half a surrogate pair.
    """
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise BadValue(f"is not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise BadValue(_too_deep()) from error
    except BadValue:
        raise
    except ValueError as error:
        raise BadValue(_too_long()) from error
    # Looking at every value costs as much as parsing, so only where it can find something.
    if "\\ud" in text or "\\uD" in text or text.count("{") + text.count("[") > MAX_DEPTH:
        return plain_value(value)
    return value


def plain_value(value: Any, *, drops_filled: bool = False) -> Any:
    """A value with lists for tuples and arrays, Python's numbers, and None for missing ones.

    Args:
        drops_filled: leave out fields of nested objects that are None. Arrow gives all objects of
            a column the same fields, and fills in None where an object had none. The content of
            a message stays.

    Raises:
        BadValue: a text has half a surrogate pair, the value is too deep, or an object has a name
            twice.
    """
    return _plain(value, 0, drops_filled)


def decoded(content: str) -> Any:
    """Parse a whole file of JSON, with marks where `plain_value` refuses a row.

    Raises:
        JSONDecodeError: the text is not JSON.
        BadValue: it is too deep, or has a number that is too long.
    """
    try:
        return _FILE_DECODER.decode(content)
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise BadValue(_too_deep()) from error
    except ValueError as error:
        raise BadValue(_too_long()) from error


def plain_row(value: Any, *, number: int, where: str) -> Row | BrokenRow:
    """Make a row of `value` if it is an object whose values can be used; see `plain_value`."""
    return _row(value, number, where, drops_filled=False)


def arrow_row(
    value: Any, *, number: int, where: str, narrow: Mapping[str, str] = MappingProxyType({})
) -> Row | BrokenRow:
    """Make a row of values that come from Arrow, without the fields that it filled in.

    Args:
        narrow: "float32" or "float16" for each column of such numbers; see `scalars.widened`.
    """
    if narrow and isinstance(value, dict):
        import numpy

        value = {
            name: widened(item, getattr(numpy, narrow[name])) if name in narrow else item
            for name, item in value.items()
        }
    return _row(value, number, where, drops_filled=True)


def narrow_columns(schema: Any) -> dict[str, str]:
    """Columns of short floats in a schema of Arrow, with the name of their type in numpy."""
    kinds = {"float": "float32", "halffloat": "float16"}
    return {field.name: kinds[str(field.type)] for field in schema if str(field.type) in kinds}


def _row(value: Any, number: int, where: str, *, drops_filled: bool) -> Row | BrokenRow:
    try:
        if isinstance(value, BadValue):
            raise value
        plain = plain_value(value, drops_filled=drops_filled)
    except BadValue as error:
        return BrokenRow(number=number, where=where, problem=str(error))
    return row_from(plain, number=number, where=where)


class _RepeatedNames(dict[str, Any]):
    """An object with a name that occurs twice."""


def _plain(value: Any, depth: int, drops_filled: bool) -> Any:
    if isinstance(value, str):
        return _checked_text(value)
    if depth > MAX_DEPTH:
        raise BadValue(_too_deep())
    if isinstance(value, dict):
        if isinstance(value, _RepeatedNames):
            raise BadValue(f"has a name twice in one object: {shown(dict(value))}")
        return {
            _checked_text(name) if isinstance(name, str) else name: _plain(
                item, depth + 1, drops_filled
            )
            for name, item in value.items()
            if not (drops_filled and depth and item is None and not _is_content(name, value))
        }
    value = _listed(value)
    if isinstance(value, list):
        return [_plain(item, depth + 1, drops_filled) for item in value]
    value = python_value(value)
    return None if is_missing(value) else value


def _listed(value: Any) -> Any:
    """A list in place of a tuple or array with dimensions, a float in place of a short one."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray) and value.ndim:
        return value.tolist()
    if numpy is not None and isinstance(value, numpy.float32 | numpy.float16):
        return widened(float(value), type(value))
    return list(value) if isinstance(value, tuple) else value


def _is_content(name: Any, of: dict[Any, Any]) -> bool:
    """Whether this is the content of a message, which a message with calls has as null."""
    return name == "content" and of.get("role") is not None


def _checked_text(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        if 0xDC80 <= code <= 0xDCFF:  # a byte that `surrogateescape` could not decode
            raise BadValue(f"is not UTF-8: invalid byte {code - 0xDC00:#x}") from error
        raise BadValue(
            f"has half of a surrogate pair, \\u{code:04x}, in {text[:40]!r}, which is no character"
        ) from error
    return text


def _too_deep() -> str:
    return f"is nested deeper than {MAX_DEPTH} levels"


def _too_long() -> str:
    # The limit of `int`, the only other ValueError of the parser.
    return f"has a whole number of more than {sys.get_int_max_str_digits()} digits"


def _null_for_nan(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BadValue(f"has the name {twice!r} twice in one object, so that one value is lost")
    return made


def _marked(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _RepeatedNames(made)


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_null_for_nan)
_FILE_DECODER = json.JSONDecoder(object_pairs_hook=_marked, parse_constant=_null_for_nan)
