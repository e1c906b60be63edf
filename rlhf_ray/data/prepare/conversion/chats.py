"""Chats: names of roles in many layouts, and checks of the order of roles."""

from __future__ import annotations

import json
from typing import Any

from rlhf_ray.data.chat_fields import read_message
from rlhf_ray.data.prepare.conversion.messages import Message, Messages, as_prompt
from rlhf_ray.data.rows import BadCell, shown

_ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "tool": "tool",
}
# Roles that may follow a role; None is the beginning of a chat.
_MAY_FOLLOW: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


class BrokenChat(ValueError):  # noqa: N818 - it reads as a sentence where it is raised
    """The cells have the right types, but the conversation in them cannot be used."""


def read_messages(
    value: Any, column: str, *, role_key: str = "role", content_key: str = "content"
) -> Messages:
    """Read a list of messages with all their fields, and translate the roles.

    Raises:
        BadCell: the value is not a list of objects with a role and a text.
        BrokenChat: the list is empty, or a role is unknown.
    """
    if not isinstance(value, list):
        raise BadCell(f"column {column!r} must be a list of messages; it is {shown(value)}")
    messages = []
    for number, item in enumerate(value, start=1):
        where = f"message {number} in column {column!r}"
        if not isinstance(item, dict):
            raise BadCell(
                f"{where} must be an object with {role_key} and {content_key}; it is {shown(item)}"
            )
        has_calls = bool(item.get("tool_calls")) and item.get(content_key) is None
        for key in (role_key, *(() if has_calls else (content_key,))):
            if not isinstance(item.get(key), str):
                raise BadCell(f"{key!r} of {where} must be text; it is {shown(item.get(key))}")
        others = {key: item[key] for key in item if key not in (role_key, content_key)}
        messages.append(
            _message({**others, "content": item.get(content_key)}, item[role_key], where)
        )
    if not messages:
        raise BrokenChat(f"column {column!r} is an empty chat; it needs at least one message")
    return tuple(messages)


def _message(fields: dict[str, Any], role: str, where: str) -> Message:
    read = read_message({**fields, "role": role_named(role)}, where)
    others = {name: value for name, value in read.items() if name not in ("role", "content")}
    try:
        json.dumps(others)
    except TypeError as error:
        raise BadCell(
            f"{where} has a field that cannot be written as JSON ({error}); take it out"
        ) from error
    return Message(role=read["role"], content=read["content"], fields=others)


def role_named(name: str) -> str:
    """Translate a layout's name of a role.

    Raises:
        BrokenChat: the name is unknown.
    """
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise BrokenChat(f"the role {name!r} is unknown; it must be one of {', '.join(_ROLES)}")
    return role


def user_message(text: str) -> Messages:
    """A prompt of one user message."""
    return (Message(role="user", content=text),)


def split_answer(messages: Messages) -> tuple[Messages, Message]:
    """Split a chat into its prompt and its last answer.

    Raises:
        BrokenChat: the last message is not the assistant's, or it is the only message.
    """
    if messages[-1].role != "assistant":
        raise BrokenChat(
            f"the chat ends with a message of the {messages[-1].role}, not with an answer"
        )
    if len(messages) == 1:
        raise BrokenChat("the chat has an answer and no prompt")
    return as_prompt(messages[:-1]), messages[-1]


def split_text(messages: Messages) -> tuple[Messages, str]:
    """Split a chat into its prompt and the text of its last answer.

    Raises:
        BrokenChat: see `split_answer`, `text_of_answer`.
    """
    prompt, answer = split_answer(messages)
    return prompt, text_of_answer(answer)


def text_of_answer(answer: Message) -> str:
    """The text of an answer of a kind whose answers are texts.

    Raises:
        BrokenChat: the answer has more than text, or is not to be learnt.
    """
    more = sorted(name for name in answer.fields if name != "weight")
    if more:
        raise BrokenChat(
            f"the answer has {', '.join(map(repr, more))}, and only demonstrations keep more of an "
            "answer than its text"
        )
    if answer.fields.get("weight") == 0:
        raise BrokenChat("the answer has 'weight' 0, so that it is not to be learnt")
    return answer.content


def order_problem(messages: Messages, *, ends_with_answer: bool) -> str | None:
    """Describe what is wrong with the order of roles; None if nothing is."""
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        if message.role not in _MAY_FOLLOW[before]:
            expected = " or ".join(_MAY_FOLLOW[before])
            after = f"comes after the {before}'s" if before else "comes first"
            return f"message {number} is of the {message.role} and {after}; expected {expected}"
        before = message.role
    if ends_with_answer and before != "assistant":
        return f"the chat ends with a message of the {before}, not with an answer"
    if not ends_with_answer and before not in ("user", "tool"):
        return f"the chat ends with a message of the {before}, so there is nothing to answer"
    return None
