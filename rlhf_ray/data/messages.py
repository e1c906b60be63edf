"""Chats: checks of a list of messages, and rendering with a chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError, TemplateSyntaxError

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.data.rows import BadCell, DataError, Row, cell, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
T = TypeVar("T")

# Roles that may follow a role; None is the beginning of a chat.
_MAY_FOLLOW: dict[str | None, tuple[str, ...]] = {
    None: ("system", "developer", "user"),
    "system": ("user", "developer"),
    "developer": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def render(
    row: Row, data: DataConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[Message], str]:
    """Read the prompt of a row as a chat and as text that ends where the answer begins.

    Raises:
        BadCell: the prompt is neither text nor a chat, is empty, or the template refuses it.
        DataError: the prompt is a chat and the tokenizer has no template.
    """
    value = cell(row, data.prompt_column)
    if isinstance(value, str):
        if not value.strip():
            raise BadCell(f"column {data.prompt_column!r} is empty; it must be text or a chat")
        text, value = value, [{"role": "user", "content": value}]
        if not uses_template(data, tokenizer):
            return value, text
    messages = check_messages(value, data.prompt_column)
    if not uses_template(data, tokenizer):
        raise DataError(f"{row.where}: the prompt is a chat, {no_template(data)}")
    messages = with_system(messages, data.system_prompt)
    return messages, apply_template(messages, tokenizer, add_generation_prompt=True)


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The chat with the system message in front, unless the chat has one already."""
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def uses_template(data: DataConfig | ExamplesConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go through a chat template."""
    return data.apply_chat_template and tokenizer.chat_template is not None


def check_system_prompt(
    data: DataConfig | ExamplesConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a system prompt without a chat template that could hold it.

    Raises:
        DataError: prompts do not go through a chat template.
    """
    if data.system_prompt is not None and not uses_template(data, tokenizer):
        raise DataError(f"{data.key('system_prompt')} is set, {no_template(data)}")


def no_template(data: DataConfig | ExamplesConfig) -> str:
    """End of a message: why a chat cannot be rendered, and the fix."""
    if not data.apply_chat_template:
        return f"but {data.key('apply_chat_template')} is false; set it to true"
    return (
        "but the model's tokenizer has no chat template; give one with model.chat_template, "
        "or use a plain text prompt"
    )


def check_messages(value: Any, column: str) -> list[Message]:
    """Check the messages of a prompt.

    Raises:
        BadCell: the value is not a list of messages with role and text, or ends with an answer.
    """
    messages = _check_list(value, column)
    if messages[-1]["role"] == "assistant":
        raise BadCell(
            f"the chat in column {column!r} ends with a message of the assistant, so that there "
            "is nothing to answer; end it with a message of another role"
        )
    return messages


def check_conversation(value: Any, column: str) -> list[Message]:
    """Check the messages of a demonstration and return them up to the last answer.

    Raises:
        BadCell: the value is not a list of messages with role and text, a role is unknown or out
            of order, or no answer has text.
    """
    messages = _check_list(value, column)
    before: str | None = None
    for number, message in enumerate(messages, start=1):
        where, role = f"message {number} in column {column!r}", message["role"]
        if role not in _MAY_FOLLOW:
            known = ", ".join(name for name in _MAY_FOLLOW if name is not None)
            raise BadCell(f"'role' of {where} is {role!r}; it must be one of {known}")
        if role not in _MAY_FOLLOW[before]:
            raise BadCell(
                f"{where} is of the role {role!r}, which cannot "
                f"{'begin a chat' if before is None else f'follow {before!r}'}; it must be "
                f"{' or '.join(_MAY_FOLLOW[before])}"
            )
        before = role
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_text(m)]
    if not answers:
        raise BadCell(f"the assistant says nothing in the chat in column {column!r}; add an answer")
    return messages[: answers[-1] + 1]


def has_text(message: Message) -> bool:
    """Whether a message has any text but white space."""
    return bool(message["content"].strip())


def _check_list(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadCell(f"column {column!r} must be text or a list of messages; it is {shown(value)}")
    if not value:
        raise BadCell(f"column {column!r} is a chat without messages; it needs at least one")
    for number, message in enumerate(value, start=1):
        _check_message(message, f"message {number} in column {column!r}")
    return value


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise BadCell(f"{where} must be an object with role and content; it is {shown(message)}")
    for name in ("role", "content"):
        if name not in message:
            raise BadCell(f"{where} has no {name!r}, only {sorted(map(str, message))}")
        if not isinstance(message[name], str):
            raise BadCell(f"{name!r} of {where} must be text; it is {shown(message[name])}")
    if not message["role"]:
        raise BadCell(f"'role' of {where} is empty; name the role, such as 'user'")


def apply_template(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool
) -> str:
    """Render a chat as text.

    Args:
        add_generation_prompt: end the text with the beginning of an assistant's turn.

    Raises:
        BadCell: the template refuses the messages.
        DataError: the template is broken.
    """
    text = _explained(
        lambda: tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
        )
    )
    assert isinstance(text, str)
    return text


def apply_template_with_marks(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, list[tuple[int, int]]]:
    """Render a chat as text, with the [start, stop) of the characters that the template marks.

    `tokenizer.apply_chat_template` gives only a mask of tokens. With transformers 5.19 it gives no
    mask from the first part on whose first character belongs to no token.

    Raises:
        BadCell: the template refuses the messages.
        DataError: the template is broken.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    # The library's annotations lack the marks and the variables of a template.
    render: Callable[..., Any] = render_jinja_template
    texts, marks = _explained(
        lambda: render(
            conversations=[list(messages)],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
        )
    )
    return texts[0], [(start, stop) for start, stop in marks[0]]


def _explained(render: Callable[[], T]) -> T:
    try:
        return render()
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template is broken: line {error.lineno}: {error}") from error
    except TemplateError as error:
        raise BadCell(f"the chat template refuses the messages: {error}") from error
    # A template is a program, and ends on messages that it was not written for in any way.
    except Exception as error:
        kind = type(error).__name__
        raise BadCell(f"the chat template fails on the messages: {kind}: {error}") from error
