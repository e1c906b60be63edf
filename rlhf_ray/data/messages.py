"""Chats: checks of a list of messages, and rendering with a chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jinja2 import TemplateError, TemplateSyntaxError

from rlhf_ray.config.groups.data import DataConfig, ExamplesConfig
from rlhf_ray.data.chat_fields import (
    Message,
    Tool,
    is_learnt,
    read_message,
    read_tools,
    without_weight,
)
from rlhf_ray.data.rendering.bounds import TookTooMuch, bounded
from rlhf_ray.data.rows import BadCell, DataError, Row, cell, refuse_written_chat, shown
from rlhf_ray.data.template_time import time_variables

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedPrompt:
    """The prompt of a row.

    Attributes:
        messages: the prompt as a chat, without system prompt if the text is plain.
        text: the same, up to where the answer begins.
        tools: functions that the answer may call.
    """

    messages: list[Message]
    text: str
    tools: list[Tool]


def render(row: Row, data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> RenderedPrompt:
    """Read the prompt of a row as a chat and as text that ends where the answer begins.

    Raises:
        BadCell: the prompt is neither text nor a chat, is empty, or the template refuses it.
        DataError: the prompt is a chat or has tools, and the tokenizer has no template.
    """
    value = cell(row, data.prompt_column)
    tools = tools_cell(row, data, tokenizer)
    if isinstance(value, str):
        if not value.strip():
            raise BadCell(f"column {data.prompt_column!r} is empty; it must be text or a chat")
        refuse_written_chat(value, data.prompt_column)
        text, value = value, [{"role": "user", "content": value}]
        if not uses_template(data, tokenizer):
            return RenderedPrompt(messages=value, text=text, tools=[])
    messages = check_messages(value, data.prompt_column)
    if not uses_template(data, tokenizer):
        raise DataError(f"{row.where}: the prompt is a chat, {no_template(data)}")
    messages = with_system(messages, data.system_prompt)
    text = apply_template(messages, tokenizer, add_generation_prompt=True, tools=tools)
    return RenderedPrompt(messages=messages, text=text, tools=tools)


def tools_cell(
    row: Row, source: DataConfig | ExamplesConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Tool]:
    """Read the tools of a row; a row without the column has none.

    Raises:
        BadCell: see `read_tools`.
        DataError: the row has tools and no chat template could hold them.
    """
    column = source.tools_column
    if column is None:
        return []
    try:
        tools = read_tools(row.cells.get(column), column)
    except BadCell as error:
        key = source.key("tools_column")
        raise BadCell(f"{error}. If the column has no tools, set {key}=null") from error
    if tools and not uses_template(source, tokenizer):
        raise DataError(
            f"{row.where}: the row has tools in the column {column!r}, {no_template(source)}; "
            f"{source.key('tools_column')}=null leaves them out"
        )
    return tools


def with_system(messages: Sequence[Message], system_prompt: str | None) -> list[Message]:
    """The chat with the system message in front, unless the chat has one already."""
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return list(messages)
    return [{"role": "system", "content": system_prompt}, *messages]


def uses_template(data: DataConfig | ExamplesConfig, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go through a chat template."""
    return data.apply_chat_template and tokenizer.chat_template is not None


def check_templates(data: DataConfig | ExamplesConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a system prompt without a chat template, and named templates without a default.

    Raises:
        DataError: prompts do not go through a chat template; or there are several and none is it.
    """
    named = tokenizer.chat_template
    if data.apply_chat_template and isinstance(named, dict) and "default" not in named:
        raise DataError(
            f"the model's tokenizer has the chat templates {', '.join(map(repr, named))}, and none "
            "is the default; name one with model.chat_template"
        )
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
    """Check the messages of a prompt; see `read_message` for their form.

    Raises:
        BadCell: the value is not a list of messages with role and text, ends with an answer, or
            asks to learn an answer, though all answers of a prompt are context.
    """
    messages = _check_list(value, column)
    if messages[-1]["role"] == "assistant":
        raise BadCell(
            f"the chat in column {column!r} ends with a message of the assistant, so that there "
            "is nothing to answer; end it with a message of another role"
        )
    for number, message in enumerate(messages, start=1):
        if message.get("weight") == 1:
            raise BadCell(
                f"message {number} in column {column!r} has 'weight' 1, but nothing in a prompt is "
                "learnt; leave the weight out or set it to 0"
            )
    return [without_weight(message) for message in messages]


def check_conversation(value: Any, column: str) -> list[Message]:
    """Check the messages of a demonstration and return them up to the last answer to learn.

    Raises:
        BadCell: the value is not a list of messages with role and text, a role is unknown or out
            of order, or no answer says anything that is to be learnt.
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
    answers = [i for i, message in enumerate(messages) if is_learnt(message)]
    if not answers:
        if any(message.get("weight") == 0 for message in messages):
            raise BadCell(
                f"no answer in the chat in column {column!r} is to be learnt: those with text "
                "have 'weight' 0; leave the row out"
            )
        raise BadCell(f"the assistant says nothing in the chat in column {column!r}; add an answer")
    return messages[: answers[-1] + 1]


def _check_list(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadCell(f"column {column!r} must be text or a list of messages; it is {shown(value)}")
    if not value:
        raise BadCell(f"column {column!r} is a chat without messages; it needs at least one")
    return [
        read_message(message, f"message {number} in column {column!r}")
        for number, message in enumerate(value, start=1)
    ]


def apply_template(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
    tools: Sequence[Tool] = (),
) -> str:
    """Render a chat as text.

    Args:
        add_generation_prompt: end the text with the beginning of an assistant's turn.
        tools: functions that the assistant may call.

    Raises:
        BadCell: the template refuses the messages.
        DataError: the template is broken.
    """
    text = _explained(
        lambda: tokenizer.apply_chat_template(
            [without_weight(message) for message in messages],
            tools=list(tools) or None,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **time_variables(tokenizer),
        )
    )
    assert isinstance(text, str)
    return text


def apply_template_with_marks(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, tools: Sequence[Tool] = ()
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
            conversations=[[without_weight(message) for message in messages]],
            tools=list(tools) or None,
            chat_template=tokenizer.get_chat_template(tools=list(tools) or None),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
            **time_variables(tokenizer),
        )
    )
    return texts[0], [(start, stop) for start, stop in marks[0]]


def _explained(render: Callable[[], T]) -> T:
    try:
        with bounded():
            return render()
    except TookTooMuch as error:
        raise BadCell(f"the chat template {error}") from error
    except TemplateSyntaxError as error:
        raise DataError(f"the chat template is broken: line {error.lineno}: {error}") from error
    except TemplateError as error:
        raise BadCell(f"the chat template refuses the messages: {error}") from error
    # A template may call anything on what a message holds: TypeError, KeyError, RecursionError, ...
    except Exception as error:
        raise BadCell(
            f"the chat template fails on the messages: {type(error).__name__}: {error}"
        ) from error
