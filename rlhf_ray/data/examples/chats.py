"""Cells that hold conversations: whole ones, prompts, and answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.examples.spans import MarkedText, mark_answers, mark_plain
from rlhf_ray.data.messages import (
    Message,
    check_conversation,
    check_messages,
    no_template,
    uses_template,
    with_system,
)
from rlhf_ray.data.rows import BadCell, DataError, Row, cell, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def has_cell(row: Row, column: str) -> bool:
    """Whether the row says anything in this column."""
    return row.cells.get(column) is not None


def prompt_cell(row: Row, column: str) -> str | list[Message]:
    """A prompt: text, or the messages of a chat that ends where an answer begins.

    Raises:
        BadCell: it is neither, or empty.
    """
    value = cell(row, column)
    return answer_text(value, column) if isinstance(value, str) else check_messages(value, column)


def answer_cell(row: Row, column: str) -> str:
    """One answer.

    Raises:
        BadCell: it is no text, or empty.
    """
    return answer_text(cell(row, column), column)


def answer_text(value: Any, column: str) -> str:
    """A text that says something.

    Raises:
        BadCell: it is something else, or empty.
    """
    if not isinstance(value, str):
        raise BadCell(f"column {column!r} must be text; it is {shown(value)}")
    if not value.strip():
        raise BadCell(f"column {column!r} is empty")
    return value


def conversation_cell(row: Row, column: str) -> list[Message]:
    """A whole conversation, up to its last answer.

    Raises:
        BadCell: it is none; see `check_conversation`.
    """
    return check_conversation(cell(row, column), column)


def mark_answer(
    row: Row,
    prompt: str | Sequence[Message],
    answer: str,
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> MarkedText:
    """A prompt and an answer to it as the model sees them, the answer marked.

    Answers that the prompt has of its own are context.

    Raises:
        BadCell: the template refuses them, or roles stand where they cannot.
        DataError: the prompt is a chat, and there is no template to render it with.
    """
    if isinstance(prompt, str) and not uses_template(examples, tokenizer):
        return mark_plain(prompt, answer, tokenizer)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    messages.append({"role": "assistant", "content": answer})
    check_conversation(messages, examples.prompt_column)
    return mark_chat(row, messages, examples, tokenizer, only_last=True)


def mark_chat(
    row: Row,
    messages: Sequence[Message],
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    only_last: bool,
) -> MarkedText:
    """A conversation as the model sees it, its last answer or all of them marked.

    Raises:
        BadCell: the template refuses it.
        DataError: there is no template.
    """
    if not uses_template(examples, tokenizer):
        raise DataError(f"{row.where}: the row is a chat, {no_template(examples)}")
    whole = with_system(messages, examples.system_prompt)
    return mark_answers(whole, tokenizer, only_last=only_last)


def asked(messages: Sequence[Message]) -> list[Any]:
    """What comes before the first answer, as plain values."""
    question: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        question.append([message["role"], message["content"]])
    return question


def asked_by(prompt: str | Sequence[Message]) -> list[Any]:
    """A whole prompt as plain values; text is one message of the user."""
    if isinstance(prompt, str):
        return [["user", prompt]]
    return [[message["role"], message["content"]] for message in prompt]
