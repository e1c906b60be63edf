"""Check of a rendered chat: the template writes what the row says, where it is learnt.

Templates leave out what they were not written for: tools, calls, thoughts of earlier turns, fields
that they do not know. They say nothing about it, and the model would learn another answer than the
row's. Here the chat is rendered again with marks in place of its texts (and of its calls), and the
marks are looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_ray.data.chat_fields import REASONING_FIELDS, Message
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rendering.chat import RenderedChat, common_length
from rlhf_ray.data.rendering.texts import FIX, check_texts
from rlhf_ray.data.rows import BadCell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SHOWN_CHARACTERS = 80


def check_rendering(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Refuse a rendering without what the row says, and note what it changes.

    Refused are: tools, calls, and texts of other roles that the template leaves out; and learnt
    answers whose text, thoughts or calls it leaves out, changes or writes elsewhere.

    Returns:
        notes, for `RowNotes`: white space that is changed, text that is added, earlier answers that
        are shortened where they are context, fields of messages that are not written.

    Raises:
        BadCell: see above.
    """
    _check_tools(chat, tokenizer)
    notes = check_texts(chat, tokenizer)
    _check_calls(chat, tokenizer)
    return (*notes, *_unread_fields(chat, tokenizer))


def _check_tools(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> None:
    if not chat.tools:
        return
    without = apply_template(chat.messages, tokenizer, add_generation_prompt=chat.for_answer)
    names = [tool["function"]["name"] for tool in chat.tools]
    left_out = names if without == chat.text else [n for n in names if n not in chat.text]
    if left_out:
        raise BadCell(
            f"the row has tools, and the chat template does not write {left_out[0]!r}; give a "
            "template with a place for tools (model.chat_template)"
        )


def _check_calls(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that does not write every call, or writes it outside of its answer."""
    for index, message in enumerate(chat.messages):
        if not message.get("tool_calls"):
            continue
        marks, changed = _marked_calls(message, with_names=True)
        marked = _with_message(chat, index, changed, tokenizer)
        if marked is None:
            # The template asks more of arguments than marks can give: names must do.
            marks, marked = [call["function"]["name"] for call in message["tool_calls"]], chat.text
        if any(mark not in marked for mark in marks):
            raise BadCell(
                f"the chat template does not write the calls of tools of message {index + 1} with "
                f"their names and arguments ({str(message['tool_calls'])[:_SHOWN_CHARACTERS]}); "
                "give a template that does (model.chat_template)"
            )
        if index in chat.learnt and not _is_in_answer(chat, index, tokenizer):
            raise BadCell(
                f"the chat template writes the calls of tools of message {index + 1} outside of "
                f"the answer; {FIX}"
            )


def _is_in_answer(chat: RenderedChat, index: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the rendering changes within the answer alone if the arguments of its calls do.

    Names may also stand in the header of a tool's result.
    """
    _, changed = _marked_calls(chat.messages[index], with_names=False)
    marked = _with_message(chat, index, changed, tokenizer)
    if marked is None or marked == chat.text:
        return True
    start, stop = chat.learnt[index]
    begin = common_length(chat.text, marked)
    end = len(chat.text) - common_length(chat.text[:begin:-1], marked[:begin:-1])
    return start <= begin and end <= stop


def _with_message(
    chat: RenderedChat, index: int, message: Message, tokenizer: PreTrainedTokenizerBase
) -> str | None:
    messages = [*chat.messages[:index], message, *chat.messages[index + 1 :]]
    return chat.try_render(tokenizer, messages)


def _marked_calls(message: Message, *, with_names: bool) -> tuple[list[str], Message]:
    """Marks, and the message with them as arguments of its calls, and as their names."""
    marks: list[str] = []
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        function = dict(call["function"])
        changes = {"arguments": {f"zQ7k{number}w": f"zQ7v{number}w"}}
        marks_of_call = [mark for pair in changes["arguments"].items() for mark in pair]
        if not function["arguments"]:
            changes, marks_of_call = {}, []
        if with_names:
            function["name"] = f"zQ7n{number}w"
            marks_of_call.append(function["name"])
        marks += marks_of_call
        calls.append({**call, "function": {**function, **changes}})
    return marks, {**message, "tool_calls": calls}


def _unread_fields(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Note the fields of messages that change nothing in the rendering."""
    for name in sorted({name for message in chat.messages for name in _other(message)}):
        without = [
            {key: value for key, value in message.items() if key not in {name} & _other(message)}
            for message in chat.messages
        ]
        if chat.try_render(tokenizer, without) == chat.text:
            yield f"the chat template does not write the field {name!r} of messages"


def _other(message: Message) -> set[str]:
    """The fields of a message that no other check looks for."""
    read = {"role", "content", "tool_calls", "weight"}
    if message["role"] == "assistant":
        read |= {*REASONING_FIELDS}
    return {*message} - read
