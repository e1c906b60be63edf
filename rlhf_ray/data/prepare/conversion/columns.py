"""Rows without a ready layout: one column for each part of a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from rlhf_ray.config.groups.prepare_sources import COLUMNS, PreparedSource
from rlhf_ray.data.chat_fields import Tool, read_tools
from rlhf_ray.data.prepare.conversion.chats import (
    BrokenChat,
    read_messages,
    split_text,
    text_of_answer,
    user_message,
)
from rlhf_ray.data.prepare.conversion.contents import (
    Content,
    Demonstration,
    FeedbackContent,
    Preference,
    PromptOnly,
    Text,
)
from rlhf_ray.data.prepare.conversion.mapping import Layout, by_row, said_in, text_in
from rlhf_ray.data.prepare.conversion.messages import (
    Message,
    Messages,
    as_context,
    as_prompt,
)
from rlhf_ray.data.prepare.conversion.ranked import (
    margin_of_pair,
    preference_of_ranking,
    preference_of_scores,
)
from rlhf_ray.data.rows import BadCell, Row, shown

_NUMBERS = ("margin", "chosen_score", "rejected_score", "scores", "good")
_GOOD = {"true", "1", "yes", "good", "up"}
_BAD = {"false", "0", "no", "bad", "down"}


def columns_layout(source: PreparedSource) -> Layout:
    """Mapping by the `columns` of a source; by default a column has the name of its part."""
    column = _Columns(source.columns)
    read = _READERS[source.kind]
    # Columns that the user named must exist, and the least columns that the kind needs.
    needs = [(name,) for name in source.columns.values()]
    needs += [tuple(column(part) for part in group) for group in _NEEDS[source.kind]]
    return Layout(
        needs=tuple(needs),
        apply=by_row(lambda row, _: read(row, column)),
        reads=tuple(column(part) for part in COLUMNS[source.kind]),
        numbers=tuple(map(column, _NUMBERS)),
    )


class _Columns:
    """Column of a part: as configured, or the name of the part."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def __call__(self, part: str) -> str:
        return self._names.get(part, part)


def _text(row: Row, column: _Columns) -> Content:
    return Text(text=text_in(row, column("text")))


def _prompt(row: Row, column: _Columns) -> Content:
    return PromptOnly(
        prompt=_prompt_messages(row, column("prompt")),
        answer=_optional(row, column("answer")),
        tools=_tools(row, column),
    )


def _demonstration(row: Row, column: _Columns) -> Content:
    if column("messages") in row.cells:
        name = column("messages")
        return Demonstration(
            messages=read_messages(row.cells[name], name), tools=_tools(row, column)
        )
    answer = Message(role="assistant", content=said_in(row, column("answer")))
    prompt = as_context(_prompt_messages(row, column("prompt")))
    return Demonstration(messages=(*prompt, answer), tools=_tools(row, column))


def _preference(row: Row, column: _Columns) -> Content:
    return dataclasses.replace(_preference_alone(row, column), tools=_tools(row, column))


def _preference_alone(row: Row, column: _Columns) -> Preference:
    if column("ranking") in row.cells and row.cells[column("ranking")] is not None:
        answers = _texts(row, column("ranking"))
        return preference_of_ranking(_prompt_messages(row, column("prompt")), answers)
    if column("answers") in row.cells:
        answers = _texts(row, column("answers"))
        prompt = _prompt_messages(row, column("prompt"))
        return preference_of_scores(prompt, answers, _list(row, column("scores")))
    chosen, rejected = row.cells.get(column("chosen")), row.cells.get(column("rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return preference_of_chats(row, column, chosen, rejected)
    return Preference(
        prompt=_prompt_messages(row, column("prompt")),
        chosen=said_in(row, column("chosen")),
        rejected=said_in(row, column("rejected")),
        margin=_margin(row, column),
    )


def preference_of_chats(row: Row, column: _Columns, chosen: Any, rejected: Any) -> Preference:
    """Preference of two chats that end with the answers and share the prompt."""
    prompt, good = split_chat(chosen, column("chosen"), row.cells.get(column("prompt")))
    other, bad = split_chat(rejected, column("rejected"), row.cells.get(column("prompt")))
    if prompt != other:
        raise BrokenChat("chosen and rejected answer different prompts")
    _check_same_prompt(row.cells.get(column("prompt")), column("prompt"), prompt)
    return Preference(prompt=prompt, chosen=good, rejected=bad, margin=_margin(row, column))


def _check_same_prompt(value: Any, column: str, prompt: Messages) -> None:
    """Refuse a prompt that has nothing in common with that of the chats, which is read.

    Raises:
        BrokenChat: neither is a part of the other.
    """
    texts = [value] if isinstance(value, str) else []
    if isinstance(value, list):
        texts = [message.content for message in read_messages(value, column)]
    given = ["".join(text.split()) for text in texts if text.strip()]
    of_chats = ["".join(message.content.split()) for message in prompt if message.content.strip()]
    if given and not any(a in b or b in a for a in given for b in of_chats):
        raise BrokenChat(
            f"column {column!r} is {shown(value)}, and the chats answer {prompt[-1].content[:80]!r}"
        )


def split_chat(value: Any, column: str, prompt: Any) -> tuple[Messages, str]:
    """Split a chat into prompt and answer; a chat of only the answer takes `prompt` as prompt.

    Raises:
        BadCell: the value is not a chat.
        BrokenChat: the chat has no answer or no prompt.
    """
    messages = read_messages(value, column)
    if len(messages) == 1 and messages[0].role == "assistant" and prompt:
        before = (
            user_message(prompt) if isinstance(prompt, str) else read_messages(prompt, "prompt")
        )
        return as_prompt(before), text_of_answer(messages[0])
    return split_text(messages)


def _feedback(row: Row, column: _Columns) -> Content:
    return FeedbackContent(
        prompt=_prompt_messages(row, column("prompt")),
        answer=said_in(row, column("answer")),
        good=_good(row, column("good")),
        tools=_tools(row, column),
    )


def _tools(row: Row, column: _Columns) -> tuple[Tool, ...]:
    return tuple(read_tools(row.cells.get(column("tools")), column("tools")))


def _good(row: Row, column: str) -> bool:
    value = row.cells.get(column)
    word = str(value).strip().lower() if isinstance(value, bool | int | str) else ""
    if word not in _GOOD | _BAD:
        raise BadCell(
            f"column {column!r} must be true or false (or 1, 0, good, bad); it is {shown(value)}"
        )
    return word in _GOOD


def _prompt_messages(row: Row, column: str) -> Messages:
    if isinstance(row.cells.get(column), list):
        return _checked_prompt(read_messages(row.cells[column], column), column)
    return user_message(said_in(row, column))


def _checked_prompt(messages: Messages, column: str) -> Messages:
    for number, message in enumerate(messages, start=1):
        if message.fields.get("weight") == 1:
            raise BadCell(
                f"message {number} in column {column!r} has 'weight' 1, but nothing in a prompt is "
                "learnt; leave the weight out or set it to 0"
            )
    return as_prompt(messages)


def _margin(row: Row, column: _Columns) -> float | None:
    return margin_of_pair(
        row,
        chosen_score=column("chosen_score"),
        rejected_score=column("rejected_score"),
        margin=column("margin"),
    )


def _optional(row: Row, column: str) -> str | None:
    return None if row.cells.get(column) in (None, "") else text_in(row, column)


def _list(row: Row, column: str) -> list[Any]:
    value = row.cells.get(column)
    if not isinstance(value, list):
        raise BadCell(f"column {column!r} must be a list; it is {shown(value)}")
    return value


def _texts(row: Row, column: str) -> tuple[str, ...]:
    values = _list(row, column)
    if not all(isinstance(value, str) for value in values):
        raise BadCell(f"column {column!r} must be a list of texts; it is {shown(values)}")
    return tuple(values)


_READERS: dict[str, Callable[[Row, _Columns], Content]] = {
    "text": _text,
    "prompt": _prompt,
    "demonstration": _demonstration,
    "preference": _preference,
    "feedback": _feedback,
}
# One column of each group is enough.
_NEEDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "text": (("text",),),
    "prompt": (("prompt",),),
    "demonstration": (("messages", "prompt"), ("messages", "answer")),
    "preference": (
        ("chosen", "ranking", "answers"),
        ("rejected", "ranking", "scores"),
    ),
    "feedback": (("prompt",), ("answer",), ("good",)),
}
