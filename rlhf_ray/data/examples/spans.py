"""Positions of the answers in a rendered conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.messages import (
    Message,
    apply_template,
    apply_template_with_marks,
    has_text,
)
from rlhf_ray.data.rows import BadCell
from rlhf_ray.data.turn_ends import added_tokens, template_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[int, int]

# The tag by which a template marks the answers of the model.
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_FIX = "give a template that marks its answers with {% generation %} (model.chat_template)"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedText:
    """A text and its parts that the model should write.

    Attributes:
        text: the whole conversation.
        answers: [start, stop) of each part, in order; not empty, and not touching each other.
        adds_specials: the tokenizer adds its special tokens at the beginning of the text; False
            with a template, which writes them itself.
        has_end: the answer of a row without template ended already, so that no end was added.
    """

    text: str
    answers: tuple[Part, ...]
    adds_specials: bool
    has_end: bool = False


def mark_answers(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, only_last: bool
) -> MarkedText:
    """Render a conversation with the chat template, and find the assistant's text in it.

    A part begins at the end of the generation prompt, where the model begins to write. It ends
    with the token that ends the turn, which the model must learn to write too. White space after
    that token belongs to the template. If the template marks answers (`{% generation %}`), the
    marks decide. Otherwise the conversation is rendered again up to each answer, and the whole
    text must begin with that rendering.

    Args:
        messages: the last one is the assistant's, and has text.
        only_last: mark only the last answer; otherwise every answer with text.

    Raises:
        BadCell: the template refuses the messages or does not write the answers, or the whole
            text does not begin with the rendering of a beginning, so that the position of an
            answer is unknown.
    """
    specials = tuple(added_tokens(tokenizer))
    template = tokenizer.get_chat_template()
    assert isinstance(template, str)
    if _MARK.search(template):
        text, parts = _marked_parts(messages, tokenizer, specials, only_last=only_last)
    else:
        text, parts = _found_parts(messages, tokenizer, specials, only_last=only_last)
    bare = tuple(_without_space(text, part, specials) for part in parts)
    return MarkedText(text=text, answers=bare, adds_specials=False)


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


def special_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The special tokens as text, the longest first."""
    added = tokenizer.added_tokens_decoder.values()
    texts = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    return tuple(sorted(texts, key=len, reverse=True))


def _found_parts(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    specials: tuple[str, ...],
    *,
    only_last: bool,
) -> tuple[str, list[Part]]:
    """Find the answers in the whole conversation by rendering the messages before each."""
    whole = apply_template(messages, tokenizer, add_generation_prompt=False)
    wanted = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_text(m)]
    parts = []
    for index in wanted[-1:] if only_last else wanted:
        before = apply_template(messages[:index], tokenizer, add_generation_prompt=True)
        _check_begins(whole, before, index)
        stop = len(whole)
        if index < len(messages) - 1:
            until = apply_template(messages[: index + 1], tokenizer, add_generation_prompt=False)
            stop = _end(whole, before, until, messages[index]["content"], specials)
        parts.append((len(before), stop))
        _check_says(whole[len(before) : stop], messages[index])
    return whole, parts


def _check_begins(whole: str, before: str, num_messages: int) -> None:
    if whole.startswith(before):
        return
    same = _common_length(before, whole)
    raise BadCell(
        f"the chat template renders the {num_messages} messages before an answer otherwise than "
        f"in the whole conversation: {before[same : same + 40]!r} instead of "
        f"{whole[same : same + 40]!r}, so that the beginning of the answer is unknown; {_FIX}"
    )


def _end(whole: str, before: str, until: str, content: str, specials: tuple[str, ...]) -> int:
    """Find the end of an answer that is not the last.

    Some templates write the last answer differently: with thoughts in front, or with an
    end-of-text token behind. Then the whole conversation must contain the answer word by word, and
    it must end with the same token.

    Args:
        before: rendering of the messages before the answer, a beginning of `whole`.
        until: rendering of the conversation up to and with the answer.
        content: text of the answer.
    """
    if whole.startswith(until) and until.startswith(before):
        return len(until)
    start = len(before)
    # Many templates strip the content; try it unchanged first.
    for said in (content, content.strip()):
        stop = start + len(said)
        ends = [end for end in specials if whole.startswith(end, stop) and said + end in until]
        if ends and whole.startswith(said, start):
            return stop + len(ends[0])
    same = _common_length(whole, until)
    raise BadCell(
        "the chat template writes an answer otherwise where more follows: "
        f"{whole[same : same + 40]!r} instead of {until[same : same + 40]!r}, so that its end is "
        f"unknown; {_FIX}"
    )


def _marked_parts(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    specials: tuple[str, ...],
    *,
    only_last: bool,
) -> tuple[str, list[Part]]:
    """Find the answers in the whole conversation by the template's marks."""
    text, marks = apply_template_with_marks(messages, tokenizer)
    parts = _joined(_with_end(text, [(a, b) for a, b in marks if a < b], specials))
    # The last answer begins where the text changes if another answer is rendered.
    last = messages[-1]
    other = {**last, "content": "b" if last["content"].lstrip().startswith("a") else "a"}
    changed, _ = apply_template_with_marks([*messages[:-1], other], tokenizer)
    content_begins = _common_length(text, changed)
    last_parts = [(a, b) for a, b in parts if b > content_begins]
    _check_says("".join(text[a:b] for a, b in last_parts), last)
    return text, last_parts if only_last else parts


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
    last_word = message["content"].split()[-1]
    if last_word not in part:
        raise BadCell(
            f"the chat template does not write the answer {message['content'][:40]!r} where it "
            f"should stand: there is {part[:40]!r}; {_FIX}"
        )


def _common_length(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
