"""Values of cells: JSON with a reason for every refusal, and values of libraries as plain ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from rlhf_ray.data.rows import BrokenRow, Row, row_from, shown
from rlhf_ray.data.scalars import float_of_json, is_missing, python_value, widened

# From a value of Arrow to the one that it is written as.
Widen = Callable[[Any], Any]
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
    value: Any, *, number: int, where: str, narrow: Mapping[str, Widen] = MappingProxyType({})
) -> Row | BrokenRow:
    """Make a row of values that come from Arrow, without the fields that it filled in.

    Args:
        narrow: what widens the short floats of a column, or makes whole numbers of floats; see
            `narrow_columns` and `whole_numbers`.
    """
    if narrow and isinstance(value, dict):
        value = {
            name: narrow[name](item) if name in narrow else item for name, item in value.items()
        }
    return _row(value, number, where, drops_filled=True)


def narrow_columns(schema: Any) -> dict[str, Widen]:
    """For each column of an Arrow schema with short floats, also inside of lists and structs:
    the function that widens them; see `scalars.widened`.
    """
    found = {field.name: _widening(field.type) for field in schema}
    return {name: widen for name, widen in found.items() if widen is not None}


def _widening(kind: Any) -> Widen | None:
    """The function for the values of a type of Arrow; None for a type without short floats."""
    import numpy
    import pyarrow

    types = pyarrow.types
    if types.is_float32(kind) or types.is_float16(kind):
        return partial(widened, narrow=numpy.float32 if types.is_float32(kind) else numpy.float16)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _widening(kind.storage_type)
    if types.is_struct(kind):
        inner = {field.name: _widening(field.type) for field in kind}
        known = {name: widen for name, widen in inner.items() if widen is not None}
        return partial(_widened_fields, known) if known else None
    if types.is_map(kind):
        item = _widening(kind.item_type)
        return item and partial(_widened_map, item)
    is_list = any(
        test(kind)
        for test in (
            types.is_list,
            types.is_large_list,
            types.is_fixed_size_list,
            types.is_list_view,
            types.is_large_list_view,
        )
    )
    if is_list or types.is_dictionary(kind):
        item = _widening(kind.value_type)
        return item and partial(_widened_items, item)
    return None


def _widened_fields(known: Mapping[str, Widen], value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: known[name](item) if name in known else item for name, item in value.items()}


def _widened_map(widen: Widen, value: Any) -> Any:
    """A map as a dictionary, or as the pairs that `datasets` makes of it."""
    if isinstance(value, dict):
        return {name: widen(item) for name, item in value.items()}
    return [(name, widen(item)) for name, item in value] if isinstance(value, list) else value


def _widened_items(widen: Widen, value: Any) -> Any:
    """A list; or a single value, where a dictionary of Arrow has encoded it."""
    return [widen(item) for item in value] if isinstance(value, list) else widen(value)


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
        # Short floats stay what they are here, and are widened one by one.
        return list(value) if value.dtype in (numpy.float32, numpy.float16) else value.tolist()
    if numpy is not None:
        single = _single(value)
        if isinstance(single, numpy.float32 | numpy.float16):
            return widened(float(single), type(single))
    return list(value) if isinstance(value, tuple) else value


def _single(value: Any) -> Any:
    """The number of numpy in an array or tensor without dimensions; any other value unchanged."""
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor) and value.ndim == 0:
        is_short = value.dtype in (torch.float32, torch.float16)
        value = value.detach().cpu().numpy() if is_short else value
    return value[()] if numpy and isinstance(value, numpy.ndarray) and not value.ndim else value


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


def _decoder(make_object: Callable[[Sequence[tuple[str, Any]]], dict[str, Any]]) -> Any:
    return json.JSONDecoder(
        object_pairs_hook=make_object, parse_float=float_of_json, parse_constant=_null_for_nan
    )


_DECODER = _decoder(_unique)
_FILE_DECODER = _decoder(_marked)
