"""Check of the texts of a rendered chat.

The chat is rendered again with a mark in place of each text, and the marks are looked for: a text
by itself may stand in a rendering by chance.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.chat_fields import REASONING_FIELDS, Message
from rlhf_ray.data.messages import apply_template
from rlhf_ray.data.rendering.chat import Part, RenderedChat
from rlhf_ray.data.rows import BadCell

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TRIMMED = "the chat template changes white space in an answer, which is learnt as it writes it"
ADDED = (
    "the chat template writes text before an answer that the row does not have, and it is learnt"
)
CONTEXT = "the chat template leaves out text of earlier answers, which are context"

_SHOWN_CHARACTERS = 40
FIX = (
    "give a template that writes it (model.chat_template), or set 'weight' to 0 in that message, "
    "which makes it context"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spot:
    """One text of a message, and the mark that replaces it."""

    index: int
    field: str
    value: str
    mark: str


def check_texts(chat: RenderedChat, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Refuse a rendering that leaves out, changes or moves a text, and note lesser changes.

    Raises:
        BadCell: a learnt answer or its thoughts, or a message of another role.
    """
    spots = tuple(_spots(chat))
    marked = chat.try_render(tokenizer, _marked_messages(chat.messages, spots))
    places = None if marked is None else _places(chat.text, marked, spots)
    if places is not None:
        _check_order(chat, spots, places)
    notes: list[str] = []
    for spot in spots:
        part = chat.learnt.get(spot.index)
        is_written = marked is None or spot.mark in marked
        if part is None:
            is_placed = places is not None and spot.mark in places
            notes += _context_notes(chat, spot, is_written=is_written, is_placed=is_placed)
        elif not is_written:
            raise _left_out(chat, spot)
        elif places is not None:
            notes += _placed_notes(chat, spot, places[spot.mark], tokenizer)
        else:
            notes += _found_notes(chat, spot, tokenizer)
    return notes


def _spots(chat: RenderedChat) -> Iterator[_Spot]:
    """The texts that a template should write: contents, and thoughts of the assistant."""
    tag = "Zq7"
    while tag in chat.text:
        tag += "7"
    number = 0
    for index, message in enumerate(chat.messages):
        fields = REASONING_FIELDS if message["role"] == "assistant" else ()
        for field in (*fields, "content"):
            value = message.get(field, "")
            if value.strip():
                yield _Spot(index=index, field=field, value=value, mark=f"{tag}x{number}w")
                number += 1


def _marked_messages(messages: Sequence[Message], spots: Sequence[_Spot]) -> list[Message]:
    marked = [dict(message) for message in messages]
    for spot in spots:
        marked[spot.index][spot.field] = spot.mark
    return marked


def _places(text: str, marked: str, spots: Sequence[_Spot]) -> dict[str, Part] | None:
    """Find each text of `spots` in the rendering, guided by the marked rendering.

    Returns:
        [start, stop) by mark. None if the renderings differ in more than the texts, because the
        template looks into them: for thoughts, for example.
    """
    found = sorted((marked.find(spot.mark), spot.value, spot.mark) for spot in spots)
    found = [item for item in found if item[0] >= 0]
    if any(marked.count(mark) > 1 for _, _, mark in found):
        return None
    first = found[0][0] if found else len(marked)
    if text[:first] != marked[:first]:
        return None
    places: dict[str, Part] = {}
    position = first
    for number, (at, value, mark) in enumerate(found):
        after = at + len(mark)
        between = marked[after : found[number + 1][0] if number + 1 < len(found) else None]
        stop = _stop_of(text, position, value, between)
        if stop is None:
            return None
        places[mark] = (position, stop)
        position = stop + len(between)
    return places if position == len(text) else None


def _stop_of(text: str, start: int, value: str, between: str) -> int | None:
    """The end of a text from `start` that is followed by `between`; None if it is not there."""
    for form in _forms(value):
        stop = start + len(form)
        if text.startswith(form, start) and text.startswith(between, stop):
            return stop
    return None


def _forms(value: str) -> Iterator[str]:
    """The forms in which templates write a text: as it is, trimmed, inside of JSON."""
    yield value
    yield value.strip("\n")
    yield value.lstrip("\n")
    yield value.rstrip("\n")
    yield value.strip()
    yield value.lstrip()
    yield value.rstrip()
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(value)[1:-1]


def _check_order(chat: RenderedChat, spots: Sequence[_Spot], places: Mapping[str, Part]) -> None:
    """Refuse a template that writes another message inside of an answer."""
    for index, (start, stop) in chat.learnt.items():
        for spot in spots:
            begin, _ = places.get(spot.mark, (stop, stop))
            if spot.index != index and start <= begin < stop:
                raise BadCell(
                    f"the chat template writes message {spot.index + 1} inside of the answer of "
                    f"message {index + 1}; {FIX}"
                )


def _context_notes(
    chat: RenderedChat, spot: _Spot, *, is_written: bool, is_placed: bool
) -> Iterator[str]:
    """Args: is_placed: the whole text stands where its mark does."""
    if is_placed:
        return
    if chat.messages[spot.index]["role"] != "assistant":
        # The template may write a mark, and less of a longer text or of one with marks of its own.
        if not (is_written and _is_in(chat.text, spot.value)):
            role = chat.messages[spot.index]["role"]
            what = "changes or cuts" if is_written else "leaves out"
            raise BadCell(
                f"the chat template {what} message {spot.index + 1} (of the role {role!r}): "
                f"{spot.value[:_SHOWN_CHARACTERS]!r}; give a template that writes it "
                "(model.chat_template), or take the message out"
            )
        return
    # The same text may stand in a later answer.
    stop = min((begin for i, (begin, _) in chat.learnt.items() if i > spot.index), default=None)
    if not is_written or _squeezed(spot.value) not in _squeezed(chat.text[:stop]):
        yield CONTEXT


def _placed_notes(
    chat: RenderedChat, spot: _Spot, place: Part, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    start, stop = chat.learnt[spot.index]
    begin, end = place
    is_inside = start < end and not chat.text[max(stop, begin) : end].strip()
    if begin < start:
        # The generation prompt may open the answer, for example with the beginning of a thought.
        is_inside = is_inside and begin >= _turn_begins(chat, spot.index, tokenizer)
    if not is_inside or _squeezed(chat.text[begin:end]) != _squeezed(spot.value):
        raise _left_out(chat, spot)
    if chat.text[begin:end] != spot.value:
        yield TRIMMED
    message = chat.messages[spot.index]
    has_more = any(name in message for name in (*REASONING_FIELDS, "tool_calls"))
    if not has_more and chat.text[start:begin].strip():
        yield ADDED


def _found_notes(
    chat: RenderedChat, spot: _Spot, tokenizer: PreTrainedTokenizerBase
) -> Iterator[str]:
    """Look for the text itself: the template writes it in another way than a mark."""
    start, stop = chat.learnt[spot.index]
    if spot.value in chat.text[start:stop]:
        return
    opened = chat.text[_turn_begins(chat, spot.index, tokenizer) : stop]
    if spot.value in opened:
        return
    if _squeezed(spot.value) not in _squeezed(opened):
        raise _left_out(chat, spot)
    yield TRIMMED


def _turn_begins(chat: RenderedChat, index: int, tokenizer: PreTrainedTokenizerBase) -> int:
    """Where the generation prompt before an answer begins; everything before is other messages."""
    start = chat.learnt[index][0]
    before = apply_template(
        chat.messages[:index], tokenizer, add_generation_prompt=False, tools=chat.tools
    )
    return len(before) if chat.text.startswith(before) and len(before) <= start else start


def _left_out(chat: RenderedChat, spot: _Spot) -> BadCell:
    start, stop = chat.learnt[spot.index]
    what = "the answer" if spot.field == "content" else f"{spot.field!r} of the answer"
    return BadCell(
        f"the chat template does not write {what} {spot.value[:_SHOWN_CHARACTERS]!r} where it "
        f"should stand: there is {chat.text[start:stop][:_SHOWN_CHARACTERS]!r} (message "
        f"{spot.index + 1}); {FIX}"
    )


def _is_in(rendered: str, value: str) -> bool:
    """Whether a text is written whole, in one of the forms of `_forms`."""
    if any(form in rendered for form in _forms(value)):
        return True
    whole = _squeezed(rendered)
    written = (value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
    return any(_squeezed(form) in whole for form in written)


def _squeezed(text: str) -> str:
    return "".join(text.split())
