"""Prompts as chats: what a list of messages must look like, and how it becomes text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError

from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.cells import BadCell, cell
from rlhf_ray.data.errors import DataError
from rlhf_ray.data.rows import Row, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]


def render(row: Row, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt of a row as the model sees it, up to where its answer begins.

    Raises:
        BadCell: the prompt is neither text nor a chat, is empty, or the template refuses it.
        DataError: the prompt is a chat and there is no template to render it with.
    """
    value = cell(row, data.prompt_column)
    if isinstance(value, str):
        if not value.strip():
            raise BadCell(f"column {data.prompt_column!r} is empty")
        if not uses_template(data, tokenizer):
            return value
        value = [{"role": "user", "content": value}]
    messages = check_messages(value, data.prompt_column)
    if not uses_template(data, tokenizer):
        raise DataError(f"{row.where}: the prompt is a chat, {_no_template(data)}")
    if data.system_prompt is not None and all(m["role"] != "system" for m in messages):
        messages = [{"role": "system", "content": data.system_prompt}, *messages]
    return _apply(messages, tokenizer)


def uses_template(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go through a chat template."""
    return data.apply_chat_template and tokenizer.chat_template is not None


def check_system_prompt(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a system prompt that would be left out.

    Raises:
        DataError: there is no chat template to put it into.
    """
    if data.system_prompt is not None and not uses_template(data, tokenizer):
        raise DataError(f"data.system_prompt is set, {_no_template(data)}")


def _no_template(data: DataConfig) -> str:
    if not data.apply_chat_template:
        return "but data.apply_chat_template is false; set it to true"
    return (
        "but the model's tokenizer has no chat template; give one with model.chat_template, "
        "or use a plain text prompt"
    )


def check_messages(value: Any, column: str) -> list[Message]:
    """The messages of a chat that a model can answer.

    Raises:
        BadCell: it is no list of messages with role and text, or ends with the answer.
    """
    if not isinstance(value, list):
        raise BadCell(f"column {column!r} must be text or a list of messages; it is {shown(value)}")
    if not value:
        raise BadCell(f"column {column!r} is a chat without messages")
    for number, message in enumerate(value, start=1):
        _check_message(message, f"message {number} in column {column!r}")
    if value[-1]["role"] == "assistant":
        raise BadCell(
            f"the chat in column {column!r} ends with the assistant's own message, so that there "
            "is nothing to answer"
        )
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
        raise BadCell(f"'role' of {where} is empty")


def _apply(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template is broken: line {error.lineno}: {error}") from error
    except TemplateError as error:
        raise BadCell(f"the chat template refuses the messages: {error}") from error
    assert isinstance(text, str)
    return text
