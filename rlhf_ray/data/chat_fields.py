"""Fields of messages and tools: the forms in which rows have them, brought to one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_ray.data.rows import BadCell, shown
from rlhf_ray.data.scalars import float_of_json, lost_number_in

Message = dict[str, Any]
Tool = dict[str, Any]

# Thoughts before an answer; chat templates name the field differently.
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
# Marks around thoughts inside of a text. Templates cut off a text up to the second.
THOUGHT_BEGINS = ("<think>", "<thinking>", "<thought>", "[THINK]")
THOUGHT_ENDS = ("</think>", "</thinking>", "</thought>", "[/THINK]")
# Fields by which other libraries say whether a message is learnt.
_OTHER_WEIGHTS = (
    "train",
    "training",
    "trainable",
    "train_detail",
    "learn",
    "loss",
    "loss_mask",
    "loss_weight",
    "mask",
    "masked",
)


def read_message(value: Any, where: str) -> Message:
    """Check a message, and bring its fields to the form that chat templates read.

    Fields that are null are left out, because Parquet and `datasets` give every message the fields
    of all others. The calls of tools become `{"type": "function", "function": {"name",
    "arguments"}}` with the arguments as an object, and the content of a message with calls may be
    null or missing. All other fields stay as they are.

    Args:
        where: the message's place, for messages.

    Raises:
        BadCell: the value is no message with a role and text or calls, or a field has a wrong form.
    """
    if not isinstance(value, dict):
        raise BadCell(f"{where} must be an object with role and content; it is {shown(value)}")
    fields = {name: item for name, item in value.items() if item is not None}
    calls = read_calls(fields.pop("tool_calls", None), where)
    role = _role(value, where)
    if calls and role != "assistant":
        raise BadCell(f"{where} has 'tool_calls' and the role {role!r}; only assistants call tools")
    if "function_call" in fields:
        raise BadCell(f"{where} has 'function_call', an older form; write it as 'tool_calls'")
    has_content = value.get("content") is not None or not calls
    message: Message = {"role": role, "content": _content(value, where) if has_content else ""}
    if calls:
        message["tool_calls"] = calls
    for name in REASONING_FIELDS:
        if not isinstance(fields.get(name, ""), str):
            raise BadCell(f"{name!r} of {where} must be text; it is {shown(fields[name])}")
        if not fields.get(name, "x").strip():
            del fields[name]
    if "weight" in fields:
        message["weight"] = _weight(fields["weight"], role, where)
    for name in _OTHER_WEIGHTS:
        if name in fields:
            raise BadCell(
                f"{where} has {name!r}, which is not read here; the field that says whether an "
                "answer is learnt is 'weight', 0 or 1"
            )
    return {**fields, **message}


def _role(value: Mapping[str, Any], where: str) -> str:
    if "role" not in value:
        raise BadCell(f"{where} has no 'role', only {sorted(map(str, value))}")
    role = value["role"]
    if not isinstance(role, str):
        raise BadCell(f"'role' of {where} must be text; it is {shown(role)}")
    if not role:
        raise BadCell(f"'role' of {where} is empty; name the role, such as 'user'")
    return role


def _content(value: Mapping[str, Any], where: str) -> str:
    if "content" not in value:
        raise BadCell(f"{where} has no 'content', only {sorted(map(str, value))}")
    content = value["content"]
    if not isinstance(content, str):
        raise BadCell(f"'content' of {where} must be text; it is {shown(content)}")
    return content


def _weight(value: Any, role: str, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
        raise BadCell(
            f"'weight' of {where} must be 1 (the answer is learnt) or 0 (it is context); it is "
            f"{shown(value)}"
        )
    if value == 1 and role != "assistant":
        raise BadCell(
            f"{where} has 'weight' 1 and the role {role!r}; only messages of the assistant are "
            "learnt"
        )
    return int(value)


def read_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Read the calls of a message: a list, or JSON text of one; null is no calls.

    Raises:
        BadCell: a call has no name, or its arguments are no object and no JSON text of one.
    """
    calls = _listed(value, f"'tool_calls' of {where}")
    return [_call(call, f"call {n} of {where}") for n, call in enumerate(calls, start=1)]


def _call(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadCell(f"{where} must be an object with name and arguments; it is {shown(value)}")
    outer = {name: item for name, item in value.items() if item is not None}
    kind = outer.pop("type", "function")
    if kind != "function":
        raise BadCell(f"the type of {where} is {shown(kind)}; it must be 'function'")
    if "function" in outer:
        inner = outer.pop("function")
    else:
        inner = {n: outer.pop(n) for n in ("name", "arguments") if n in outer}
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise BadCell(f"{where} has no name of a function; it is {shown(value)}")
    arguments = _arguments(inner.get("arguments"), where)
    return {**outer, "type": "function", "function": {**inner, "arguments": arguments}}


def _arguments(value: Any, where: str) -> dict[str, Any]:
    """The arguments of a call as an object: templates write them as JSON, and text twice."""
    if value is None or value == "":
        return {}
    read = value
    if isinstance(value, str):
        try:
            read = json.loads(value, parse_float=float_of_json)
        except (ValueError, RecursionError) as error:
            raise BadCell(f"the arguments of {where} are not JSON ({error}): {value!r}") from error
    if not isinstance(read, dict):
        raise BadCell(
            f"the arguments of {where} must be an object, or the JSON text of one; they are "
            f"{shown(value)}"
        )
    _check_numbers(read, f"the arguments of {where}")
    return read


def _check_numbers(value: Any, where: str) -> None:
    """Refuse a number that a template would write as another, because it writes floats."""
    number = lost_number_in(value)
    if number is not None:
        raise BadCell(
            f"{where} have the number {number!r}, which a float does not hold: it would be "
            f"written as {float(number)!r}. Write it with fewer digits, or as text"
        )


def read_tools(value: Any, column: str) -> list[Tool]:
    """Read the tools of a row: a list, or JSON text of one; null is no tools.

    A tool is `{"type": "function", "function": {...}}`, or the function alone, which becomes the
    former: the form in which servers give tools to a chat template.

    Raises:
        BadCell: a tool is not a function with a name.
    """
    tools = _listed(value, f"column {column!r}")
    return [_tool(tool, f"tool {n} in column {column!r}") for n, tool in enumerate(tools, start=1)]


def _tool(value: Any, where: str) -> Tool:
    if not isinstance(value, dict):
        raise BadCell(f"{where} must be an object that describes a function; it is {shown(value)}")
    outer = {name: item for name, item in value.items() if item is not None}
    kind = outer.pop("type", "function")
    if "function" in outer:
        function = outer.pop("function")
    else:
        function, outer = outer, {}
    is_function = kind == "function" and isinstance(function, dict)
    if not is_function or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadCell(f"{where} is not a function with a name; it is {shown(value)}")
    function = {name: item for name, item in function.items() if item is not None}
    _check_schema(function.get("parameters"), where)
    _check_numbers(function, f"the fields of {where}")
    return {"type": "function", **outer, "function": function}


def _check_schema(schema: Any, where: str) -> None:
    """Refuse properties that are null: the sign of a column whose tools share one structure."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if not isinstance(properties, dict):
        return
    for name, item in properties.items():
        if item is None:
            raise BadCell(
                f"the parameter {name!r} of {where} is null, as in Parquet where the tools of "
                "other rows have it; write the column as JSON text"
            )
        _check_schema(item, where)


def _listed(value: Any, where: str) -> Sequence[Any]:
    """A list, or JSON text of a list; null and empty text are an empty list."""
    if value is None or value == "":
        return []
    read = value
    if isinstance(value, str):
        try:
            read = json.loads(value, parse_float=float_of_json)
        except (ValueError, RecursionError) as error:
            raise BadCell(f"{where} must be a list, or JSON text of one: {error}") from error
    if read is None:
        return []
    if not isinstance(read, list):
        raise BadCell(f"{where} must be a list, or JSON text of one; it is {shown(value)}")
    return read


def says_something(message: Message) -> bool:
    """Whether a message has text other than white space, thoughts or calls."""
    return bool(
        message["content"].strip()
        or message.get("tool_calls")
        or any(name in message for name in REASONING_FIELDS)
    )


def is_learnt(message: Message) -> bool:
    """Whether an answer that says something is learnt where all answers of its row are."""
    return message["role"] == "assistant" and message.get("weight") != 0 and says_something(message)


def without_weight(message: Message) -> Message:
    """The message as a chat template gets it."""
    return {name: value for name, value in message.items() if name != "weight"}
