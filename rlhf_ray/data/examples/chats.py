"""Cells with conversations, prompts or answers, and their rendering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.groups.data import ExamplesConfig
from rlhf_ray.data.chat_fields import Message, read_message, says_something, without_weight
from rlhf_ray.data.examples.spans import MarkedText, mark_answers, mark_plain
from rlhf_ray.data.messages import (
    check_conversation,
    check_messages,
    no_template,
    tools_cell,
    uses_template,
    with_system,
)
from rlhf_ray.data.rows import (
    BadCell,
    DataError,
    Row,
    cell,
    no_value,
    refuse_written_chat,
    shown,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Text, or a message with more than text.
Answer = str | Message


def has_cell(row: Row, column: str) -> bool:
    """Whether the row has a value other than null in this column."""
    return row.cells.get(column) is not None


def prompt_cell(row: Row, column: str) -> str | list[Message]:
    """Read a prompt: text, or the messages of a chat that ends where an answer begins.

    Raises:
        BadCell: the cell is neither, or empty.
    """
    value = cell(row, column)
    return _said(value, column) if isinstance(value, str) else check_messages(value, column)


def filled_cell(row: Row, column: str) -> str:
    """Read one text.

    Raises:
        BadCell: the cell is not text, or empty.
    """
    return answer_text(cell(row, column), column)


def answer_cell(row: Row, column: str) -> Answer:
    """Read one answer; see `answer_value`.

    Raises:
        BadCell: also for a chat that was written as text.
    """
    value = cell(row, column)
    return _said(value, column) if isinstance(value, str) else answer_value(value, column)


def _said(value: str, column: str) -> str:
    refuse_written_chat(answer_text(value, column), column)
    return value


def answer_value(value: Any, column: str) -> Answer:
    """Read an answer: text, or a message of the assistant, also as a list of this message alone.

    Returns:
        the text; the message if it has more than text, such as calls of tools.

    Raises:
        BadCell: the value is neither, or says nothing.
    """
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        value = value[0]
    if not isinstance(value, dict):
        return answer_text(value, column)
    message = read_message(value, f"the answer in column {column!r}")
    if message["role"] != "assistant" or message.get("weight") == 0:
        raise BadCell(
            f"column {column!r} has a message of the role {message['role']!r} and the weight "
            f"{message.get('weight', 1)}; an answer is of the role 'assistant', and is learnt"
        )
    message = without_weight(message)
    if message.keys() == {"role", "content"}:
        return answer_text(message["content"], column)
    if not says_something(message):
        raise BadCell(f"column {column!r} has a message without text or calls; give an answer")
    return message


def answer_text(value: Any, column: str) -> str:
    """Check that a value is text with more than white space.

    Raises:
        BadCell: the value is not text, or empty.
    """
    if value is None:
        raise no_value(column, "text")
    if not isinstance(value, str):
        raise BadCell(f"column {column!r} must be text; it is {shown(value)}")
    if not value.strip():
        raise BadCell(f"column {column!r} is empty; it must be text")
    return value


def conversation_cell(row: Row, column: str) -> list[Message]:
    """Read a whole conversation, up to its last answer.

    Raises:
        BadCell: see `check_conversation`.
    """
    return check_conversation(cell(row, column), column)


def mark_answer(
    row: Row,
    prompt: str | Sequence[Message],
    answer: Answer,
    examples: ExamplesConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> MarkedText:
    """Render a prompt and an answer, with the answer marked.

    Earlier answers inside the prompt are context. The row's tools are given to the template.

    Raises:
        BadCell: the template refuses the messages, or roles are out of order.
        DataError: the prompt is a chat and the tokenizer has no template.
    """
    if isinstance(prompt, str) and not uses_template(examples, tokenizer):
        tools_cell(row, examples, tokenizer)
        if not isinstance(answer, str):
            raise DataError(f"{row.where}: the answer is a message, {no_template(examples)}")
        return mark_plain(prompt, answer, tokenizer)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    said = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
    messages.append(said)
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
    """Render a conversation, with its last answer or all answers marked.

    Raises:
        BadCell: the template refuses the messages.
        DataError: the tokenizer has no template.
    """
    if not uses_template(examples, tokenizer):
        raise DataError(f"{row.where}: the row is a chat, {no_template(examples)}")
    tools = tools_cell(row, examples, tokenizer)
    whole = with_system(messages, examples.system_prompt)
    return mark_answers(whole, tokenizer, only_last=only_last, tools=tools)


def question_of_chat(messages: Sequence[Message]) -> list[Any]:
    """The messages before the first answer, as plain values."""
    question: list[Any] = []
    for message in messages:
        if message["role"] == "assistant":
            break
        question.append([message["role"], message["content"]])
    return question


def question_of_prompt(prompt: str | Sequence[Message]) -> list[Any]:
    """A whole prompt as plain values; a text becomes one message of the user."""
    if isinstance(prompt, str):
        return [["user", prompt]]
    return [[message["role"], message["content"]] for message in prompt]
