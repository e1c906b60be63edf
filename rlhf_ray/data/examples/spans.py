"""Positions of the answers in a rendered conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.chat_fields import (
    REASONING_FIELDS,
    THOUGHT_ENDS,
    Message,
    Tool,
    is_learnt,
    says_something,
)
from rlhf_ray.data.messages import apply_template, apply_template_with_marks
from rlhf_ray.data.rendering.chat import Part, RenderedChat, common_length
from rlhf_ray.data.rendering.check import check_rendering
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.tokens.turn_ends import added_tokens, template_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNMARKED = "the chat template does not mark an answer with {% generation %}, and it is not learnt"

# The tag by which a template marks the answers of the model.
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Characters that may be rendered to find the answers of one chat, at about 50 million a second. A
# message takes a template as long as some characters, however short it is.
_MAX_RENDERED = 10**9
_CHARACTERS_OF_MESSAGE = 100
_FIX = "give a template that marks its answers with {% generation %} (model.chat_template)"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedText:
    """A text and its parts that the model should write.

    Attributes:
        text: the whole conversation.
        answers: [start, stop) of each part, in order; not empty, and not touching each other.
        adds_specials: the tokenizer adds its special tokens at the beginning of the text; False
            with a template, which writes them itself.
        notes: what the template changes, for `RowNotes`.
        has_end: the answer of a row without template ended already, so that no end was added.
    """

    text: str
    answers: tuple[Part, ...]
    adds_specials: bool
    notes: tuple[str, ...] = ()
    has_end: bool = False


def mark_answers(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    *,
    only_last: bool,
    tools: Sequence[Tool] = (),
    checks_text: bool = True,
) -> MarkedText:
    """Render a conversation with the chat template, and find the assistant's text in it.

    A part begins at the end of the generation prompt, where the model begins to write. It ends
    with the token that ends the turn, which the model must learn to write too. White space after
    that token belongs to the template. If the template marks answers (`{% generation %}`), the
    marks decide. Otherwise the conversation is rendered again up to each answer, and the whole
    text must begin with that rendering.

    Args:
        messages: the last one is the assistant's, and says something. An answer with the weight 0
            is context.
        only_last: mark only the last answer; otherwise every answer that says something.
        tools: functions that the assistant may call.
        checks_text: refuse a template that leaves out or changes what the messages say; False for
            answers of a model, which may be anything.

    Raises:
        BadCell: the template refuses the messages or does not write the answers, or the whole
            text does not begin with the rendering of a beginning, so that the position of an
            answer is unknown.
    """
    specials = tuple(added_tokens(tokenizer))
    template = tokenizer.get_chat_template(tools=list(tools) or None)
    assert isinstance(template, str)
    last = len(messages) - 1
    learnt = [last] if only_last else [i for i, m in enumerate(messages) if is_learnt(m)]
    find = _marked_parts if _MARK.search(template) else _found_parts
    text, parts = find(messages, learnt, tokenizer, tools, specials)
    notes: list[str] = []
    if not checks_text or last not in parts:
        _check_says("".join(text[a:b] for a, b in parts.get(last, [])), messages[last])
    else:
        spans = {index: (own[0][0], own[-1][1]) for index, own in parts.items()}
        chat = RenderedChat(messages=messages, tools=tools, text=text, learnt=spans)
        notes += check_rendering(chat, tokenizer)
        notes += [UNMARKED for index in learnt if index not in parts]
    bare = (_without_space(text, part, specials) for own in parts.values() for part in own)
    return MarkedText(text=text, answers=tuple(bare), adds_specials=False, notes=tuple(notes))


def mark_plain(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> MarkedText:
    """Join prompt, answer and end of text, for a model without a chat template.

    A rendered answer ends already, with the end of text or the token that ends a turn in the
    tokenizer's template; white space after it is context, as with a template.

    Raises:
        BadCell: the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token
    if not isinstance(end, str):
        raise BadCell(
            "the tokenizer has no end-of-text token to end an answer with; set its eos_token, or "
            "name another tokenizer with model.tokenizer_path"
        )
    bare = answer.rstrip()
    if _is_ended(bare, end, tokenizer):
        part = (len(prompt), len(prompt) + len(bare))
        return MarkedText(text=prompt + answer, answers=(part,), adds_specials=True, has_end=True)
    text = prompt + answer + end
    return MarkedText(text=text, answers=((len(prompt), len(text)),), adds_specials=True)


def _is_ended(answer: str, end: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    if answer.endswith(end):
        return True
    # Rendering is slow, and hardly any answer ends with a token of its own.
    if not answer.endswith(tuple(added_tokens(tokenizer))):
        return False
    turn_end = template_end(tokenizer)
    return turn_end is not None and answer.endswith(str(tokenizer.decode([turn_end])))


def _found_parts(
    messages: Sequence[Message],
    learnt: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
    specials: tuple[str, ...],
) -> tuple[str, dict[int, list[Part]]]:
    """Find the answers in the whole conversation by rendering the messages before each."""
    whole = apply_template(messages, tokenizer, add_generation_prompt=False, tools=tools)
    _check_bounded(whole, len(learnt), len(messages))
    parts = {}
    for index in learnt:
        before = apply_template(
            messages[:index], tokenizer, add_generation_prompt=True, tools=tools
        )
        _check_begins(whole, before, index)
        stop = len(whole)
        if index < len(messages) - 1:
            until = apply_template(
                messages[: index + 1], tokenizer, add_generation_prompt=False, tools=tools
            )
            stop = _end(whole, before, until, specials)
        parts[index] = [(len(before), stop)]
    return whole, parts


def _check_bounded(text: str, num_answers: int, num_messages: int) -> None:
    """Refuse a chat whose answers would take minutes to find: each is found by renderings."""
    size = len(text) + _CHARACTERS_OF_MESSAGE * num_messages
    if 2 * num_answers * size > _MAX_RENDERED:
        raise BadCell(
            f"the chat has {num_answers:,} answers in {num_messages:,} messages of {len(text):,} "
            f"characters; each is found by rendering the chat again, and {_MAX_RENDERED:,} "
            f"characters in all are the most that are rendered for a row, each message counted as "
            f"at least {_CHARACTERS_OF_MESSAGE}: split the chat, or shorten what its tools say"
        )


def _check_begins(whole: str, before: str, num_messages: int) -> None:
    if whole.startswith(before):
        return
    same = common_length(before, whole)
    raise BadCell(
        f"the chat template renders the {num_messages} messages before an answer otherwise than "
        f"in the whole conversation: {before[same : same + 40]!r} instead of "
        f"{whole[same : same + 40]!r}, so that the beginning of the answer is unknown; {_FIX}"
    )


def _end(whole: str, before: str, until: str, specials: tuple[str, ...]) -> int:
    """Find the end of an answer that is not the last.

    Some templates write the last answer differently: with thoughts in front, or with an
    end-of-text token behind. Then the whole conversation must go on with a part of the answer's own
    rendering, as far as a token that ends a turn.

    Args:
        before: rendering of the messages before the answer, a beginning of `whole`.
        until: rendering of the conversation up to and with the answer.
    """
    if whole.startswith(until) and until.startswith(before):
        return len(until)
    start, own = len(before), until[common_length(before, until) :]
    ends = (m.end() for m in re.finditer("|".join(map(re.escape, specials)), whole[start:]))
    found = 0
    for end in ends:
        if whole[start : start + end] not in own:
            break
        found = end
    if found:
        return start + found
    same = common_length(whole, until)
    raise BadCell(
        "the chat template writes an answer otherwise where more follows: "
        f"{whole[same : same + 40]!r} instead of {until[same : same + 40]!r}, so that its end is "
        f"unknown; {_FIX}"
    )


def _marked_parts(
    messages: Sequence[Message],
    learnt: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    tools: Sequence[Tool],
    specials: tuple[str, ...],
) -> tuple[str, dict[int, list[Part]]]:
    """Find the answers in the whole conversation by the template's marks."""
    text, marks = apply_template_with_marks(messages, tokenizer, tools=tools)
    parts = _joined(_with_end(text, [(a, b) for a, b in marks if a < b], specials))
    says = [i for i, m in enumerate(messages) if m["role"] == "assistant" and says_something(m)]
    _check_bounded(text, len(says), len(messages))
    # An answer begins where the text changes if another answer is rendered.
    begins = {}
    for index in says:
        other = [*messages[:index], _another(messages[index]), *messages[index + 1 :]]
        changed, _ = apply_template_with_marks(other, tokenizer, tools=tools)
        begins[index] = common_length(text, changed)
    owned: dict[int, list[Part]] = {}
    for part in parts:
        # Of the last answer that begins before its end; what is marked before all, of the first.
        owner = max((i for i in says if begins[i] < part[1]), default=says[0])
        owned.setdefault(owner, []).append(part)
    return text, {index: own for index, own in owned.items() if index in learnt}


def _another(message: Message) -> Message:
    """The message with another text, or with calls of other functions if it has no text."""
    if message["content"].strip():
        return {**message, "content": "b" if message["content"].lstrip().startswith("a") else "a"}
    thoughts = {name: f"not {message[name]}" for name in REASONING_FIELDS if name in message}
    calls = [
        {**call, "function": {**call["function"], "name": f"not_{call['function']['name']}"}}
        for call in message.get("tool_calls", ())
    ]
    return {**message, **thoughts, **({"tool_calls": calls} if calls else {})}


def _with_end(text: str, parts: list[Part], specials: tuple[str, ...]) -> list[Part]:
    """Extend marked parts by the token that ends a turn, if the template does not mark it.

    The special token after the last part is that token, because no other turn begins there.
    """
    following = [token for token in specials if parts and text.startswith(token, parts[-1][1])]
    if not following:
        return parts
    end = following[0]
    return [(a, b + len(end) if text.startswith(end, b) else b) for a, b in parts]


def _joined(parts: list[Part]) -> list[Part]:
    """Merge parts that touch or overlap."""
    joined: list[Part] = []
    for start, stop in parts:
        if joined and start <= joined[-1][1]:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _without_space(text: str, part: Part, specials: tuple[str, ...]) -> Part:
    """Remove white space after the token that ends the turn."""
    start, stop = part
    bare = text[start:stop].rstrip()
    return (start, start + len(bare)) if bare.endswith(specials) else part


def _check_says(part: str, message: Message) -> None:
    """Refuse a template that drops the text of a message; it may drop thoughts in front."""
    words = message["content"].split()
    last = words[-1] if words else ""
    for mark in THOUGHT_ENDS:
        last = last.rpartition(mark)[2]
    if last not in part:
        raise BadCell(
            f"the chat template does not write the answer {message['content'][:40]!r} where it "
            f"should stand: there is {part[:40]!r}; {_FIX}"
        )
