"""Chats: how the roles of many layouts are called here, and which chats are whole."""

from __future__ import annotations

from typing import Any

from rlhf_ray.data.prepare.conversion.contents import Message, Messages
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
# Which role may come after which; None is the beginning.
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
    """A list of messages, with the roles of this project.

    Raises:
        BadCell: it is no list of objects with two texts.
        BrokenChat: it is empty, or a role is unknown.
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
        for key in (role_key, content_key):
            if not isinstance(item.get(key), str):
                raise BadCell(f"{key!r} of {where} must be text; it is {shown(item.get(key))}")
        messages.append(Message(role=role_named(item[role_key]), content=item[content_key]))
    if not messages:
        raise BrokenChat(f"column {column!r} is a chat without messages")
    return tuple(messages)


def role_named(name: str) -> str:
    """The role that a layout calls `name`.

    Raises:
        BrokenChat: there is none.
    """
    role = _ROLES.get(name.strip().lower())
    if role is None:
        raise BrokenChat(f"the role {name!r} is none of {', '.join(_ROLES)}")
    return role


def user_message(text: str) -> Messages:
    """A prompt of one message."""
    return (Message(role="user", content=text),)


def split_answer(messages: Messages) -> tuple[Messages, str]:
    """A chat without its last message, and the text of that.

    Raises:
        BrokenChat: the last message is not the assistant's, or the only one.
    """
    if messages[-1].role != "assistant":
        raise BrokenChat(f"ends with a message of the {messages[-1].role}, not with an answer")
    if len(messages) == 1:
        raise BrokenChat("has an answer and no prompt")
    return messages[:-1], messages[-1].content


def order_problem(messages: Messages, *, ends_with_answer: bool) -> str | None:
    """What is wrong with the order of roles, or None."""
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        if message.role not in _MAY_FOLLOW[before]:
            after = f"comes after the {before}'s" if before else "comes first"
            return f"message {number} is of the {message.role} and {after}"
        before = message.role
    if ends_with_answer and before != "assistant":
        return f"ends with a message of the {before}, not with an answer"
    if not ends_with_answer and before not in ("user", "tool"):
        return f"ends with a message of the {before}, so that there is nothing to answer"
    return None
