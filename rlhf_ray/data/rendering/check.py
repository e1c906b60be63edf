"""Check of a rendered chat: the template writes what the row says, where it is learnt.

Templates leave out what they were not written for: tools, calls, thoughts of earlier turns, fields
that they do not know. They say nothing about it, and the model would learn another answer than the
row's. Here the chat is rendered again with marks in place of its texts (and of its calls), and the
marks are looked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_ray.data.chat_fields import REASONING_FIELDS, Message, Tool
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
    """Refuse a template that does not write every tool with its description and parameters."""
    if not chat.tools:
        return
    marks, changed = _marked_tools(chat.tools)
    marked = dataclasses.replace(chat, tools=changed).try_render(tokenizer, chat.messages)
    if marked is None:
        # The template asks more of tools than marks can give: names must do.
        marks = {tool["function"]["name"]: tool["function"]["name"] for tool in chat.tools}
        marked = apply_template(chat.messages, tokenizer, add_generation_prompt=chat.for_answer)
        marked = "" if marked == chat.text else chat.text
    left_out = next((said for mark, said in marks.items() if mark not in marked), None)
    if left_out is not None:
        raise BadCell(
            f"the row has tools, and the chat template does not write "
            f"{left_out[:_SHOWN_CHARACTERS]!r}; give a template with a place for tools, their "
            "descriptions and their parameters (model.chat_template)"
        )


def _marked_tools(tools: Sequence[Tool]) -> tuple[dict[str, str], list[Tool]]:
    """The tools with marks as names, descriptions and parameters, and the text of each mark."""
    marks: dict[str, str] = {}

    def mark(said: str) -> str:
        new = f"zQ7t{len(marks)}w"
        marks[new] = said
        return new

    changed = []
    for tool in tools:
        function = dict(tool["function"])
        function["name"] = mark(function["name"])
        if isinstance(function.get("description"), str) and function["description"].strip():
            function["description"] = mark(function["description"])
        schema = function.get("parameters")
        properties = schema.get("properties") if isinstance(schema, dict) else None
        if isinstance(schema, dict) and isinstance(properties, dict) and properties:
            names = {name: mark(name) for name in properties}
            schema = {**schema, "properties": {names[n]: v for n, v in properties.items()}}
            if isinstance(schema.get("required"), list):
                schema["required"] = [names.get(n, n) for n in schema["required"]]
            function["parameters"] = schema
        changed.append({**tool, "function": function})
    return marks, changed


def _check_calls(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a template that does not write every call, or writes it outside of its answer."""
    calling = [index for index, message in enumerate(chat.messages) if message.get("tool_calls")]
    # Rendering once for each call takes seconds where there are hundreds of them.
    if len(calling) > 1 and _are_all_in_answers(chat, calling, tokenizer):
        return
    for index, message in enumerate(chat.messages):
        if not message.get("tool_calls"):
            continue
        marks, changed = _marked_calls(message, True)
        marked = _with_messages(chat, {index: changed}, tokenizer)
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


def _are_all_in_answers(
    chat: RenderedChat, calling: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> bool:
    """Whether two renderings, with marks in all calls, show that each is written in its answer.

    False does not say that one is not: each must be looked at by itself then.
    """
    named = {index: _marked_calls(chat.messages[index], True, tag=index) for index in calling}
    marked = _with_messages(
        chat, {index: message for index, (_, message) in named.items()}, tokenizer
    )
    if marked is None or any(mark not in marked for marks, _ in named.values() for mark in marks):
        return False
    learnt = [index for index in calling if index in chat.learnt]
    argued = {index: _marked_calls(chat.messages[index], False, tag=index) for index in learnt}
    marked = _with_messages(
        chat, {index: message for index, (_, message) in argued.items()}, tokenizer
    )
    if marked is None:
        return False
    # The texts between the answers must follow each other as before, with the marks between them.
    answers = sorted((start, stop, index) for index, (start, stop) in chat.learnt.items())
    ends = [*(start for start, _, _ in answers[1:]), len(chat.text)]
    position = answers[0][0] if answers else len(chat.text)
    if marked[:position] != chat.text[:position]:
        return False
    for (start, stop, index), end in zip(answers, ends, strict=True):
        marks = argued[index][0] if index in argued else []
        places = [marked.find(mark, position) for mark in marks]
        if -1 in places:
            return False
        own = position + (0 if marks else stop - start)
        after = max((at + len(mark) for at, mark in zip(places, marks, strict=True)), default=own)
        context = chat.text[stop:end]
        begins = marked.find(context, after) if context else len(marked)
        if begins < 0 or (not marks and begins != own):
            return False
        position = begins + len(context)
    return position == len(marked)


def _is_in_answer(chat: RenderedChat, index: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the rendering changes within the answer alone if the arguments of its calls do.

    Names may also stand in the header of a tool's result.
    """
    _, changed = _marked_calls(chat.messages[index], False)
    marked = _with_messages(chat, {index: changed}, tokenizer)
    if marked is None or marked == chat.text:
        return True
    start, stop = chat.learnt[index]
    begin = common_length(chat.text, marked)
    end = len(chat.text) - common_length(chat.text[:begin:-1], marked[:begin:-1])
    return start <= begin and end <= stop


def _with_messages(
    chat: RenderedChat, changed: Mapping[int, Message], tokenizer: PreTrainedTokenizerBase
) -> str | None:
    messages = [changed.get(index, message) for index, message in enumerate(chat.messages)]
    return chat.try_render(tokenizer, messages)


def _marked_calls(message: Message, with_names: bool, *, tag: int = 0) -> tuple[list[str], Message]:
    """Marks, and the message with them as arguments of its calls, and as their names.

    Args:
        tag: makes the marks of several messages different.
    """
    marks: list[str] = []
    calls = []
    for number, call in enumerate(message["tool_calls"]):
        function = dict(call["function"])
        changes = {"arguments": {f"zQ7k{tag}x{number}w": f"zQ7v{tag}x{number}w"}}
        marks_of_call = [mark for pair in changes["arguments"].items() for mark in pair]
        if not function["arguments"]:
            changes, marks_of_call = {}, []
        if with_names:
            function["name"] = f"zQ7n{tag}x{number}w"
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
