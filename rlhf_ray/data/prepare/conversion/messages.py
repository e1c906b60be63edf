"""Messages of a chat, with all their fields, and the texts in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.chat_fields import Tool

Transform = Callable[[str], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        role: system, user, assistant or tool.
        content: text; may be empty if the message has calls of tools or thoughts.
        fields: all other fields of the message, such as tool_calls, in the form of `read_message`.
    """

    role: str
    content: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    def texts(self) -> tuple[str, ...]:
        """The content and the texts in other fields that are not names or ids.

        An empty content counts unless another field says something.
        """
        said = tuple(texts_in(self.fields))
        return (self.content, *said) if self.content.strip() or not said else said

    def mapped(self, change: Transform) -> Message:
        return Message(
            role=self.role, content=change(self.content), fields=_mapped(self.fields, change)
        )

    def to_json(self) -> dict[str, Any]:
        return {"role": self.role, "content": self.content, **self.fields}


Messages = tuple[Message, ...]


def first_user_text(messages: Messages) -> str:
    """The first message of the user; all messages if the user wrote none."""
    return next((m.content for m in messages if m.role == "user"), joined(messages))


def contents_of(messages: Messages) -> tuple[str, ...]:
    return tuple(text for message in messages for text in message.texts())


def joined(messages: Messages) -> str:
    return "\n".join(contents_of(messages))


def mapped_messages(messages: Messages, change: Transform) -> Messages:
    return tuple(message.mapped(change) for message in messages)


def messages_json(messages: Messages) -> list[dict[str, Any]]:
    return [message.to_json() for message in messages]


# Fields whose values are names: cleaning must not change them.
_NAMES = ("name", "id", "tool_call_id", "type", "weight")


def texts_in(value: Any) -> Iterator[str]:
    """The texts in nested values, but for those of fields that hold names; no blank ones.

    A call counts with the name of its function, so that a call without arguments is a text.
    """
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        if "arguments" in value and isinstance(value.get("name"), str):
            yield value["name"]
        for key, item in value.items():
            if key not in _NAMES:
                yield from texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_in(item)


def _mapped(value: Any, change: Transform) -> Any:
    """Nested values with every text changed, but for those of fields that hold names."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: item if k in _NAMES else _mapped(item, change) for k, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value


def tools_json(tools: Sequence[Tool]) -> dict[str, Any]:
    """The field `tools` of a record; none without tools."""
    return {"tools": list(tools)} if tools else {}


def as_context(messages: Messages) -> Messages:
    """The messages in front of a single answer to learn: earlier answers get the weight 0."""
    return tuple(
        Message(role=m.role, content=m.content, fields={**m.fields, "weight": 0})
        if m.role == "assistant"
        else m
        for m in messages
    )


def as_prompt(messages: Messages) -> Messages:
    """The messages of a prompt, in which weights mean nothing."""
    return tuple(
        Message(
            role=m.role,
            content=m.content,
            fields={name: value for name, value in m.fields.items() if name != "weight"},
        )
        for m in messages
    )
