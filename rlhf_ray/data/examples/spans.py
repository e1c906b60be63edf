"""Where the answers stand in a conversation as the model sees it."""

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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Part = tuple[int, int]

# What a template writes around the answers of the model where it marks them.
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_WAY_OUT = "give a template that marks its answers with {% generation %} (model.chat_template)"


@dataclass(frozen=True, kw_only=True, slots=True)
class MarkedText:
    """A text and the parts of it that a model is to write.

    Attributes:
        text: the whole conversation.
        answers: first character and the one after the last of each part, in order, none empty
            and none touching the next.
        adds_specials: the tokenizer adds its special tokens to the beginning of the text; a
            template writes its own.
    """

    text: str
    answers: tuple[Part, ...]
    adds_specials: bool


def mark_answers(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, only_last: bool
) -> MarkedText:
    """Render a conversation with the chat template, and find the assistant's own text in it.

    A part goes from where the model begins to write (the end of the generation prompt) to the end
    of the token that ends its turn, which it has to learn to write too; white space after that
    token is the template's. Where a template has marks (`{% generation %}`), they count.
    Otherwise the conversation is rendered anew up to each answer, and must begin with that.

    Args:
        messages: the last one is the assistant's, and has text.
        only_last: mark the last answer alone; every one that has text otherwise.

    Raises:
        BadCell: the template refuses the messages or does not write the answers, or its
            rendering of a beginning is not how the whole begins, so that nobody can say what
            the model wrote.
    """
    specials = special_texts(tokenizer)
    template = tokenizer.get_chat_template()
    assert isinstance(template, str)
    if _MARK.search(template):
        text, parts = _marked_parts(messages, tokenizer, specials, only_last=only_last)
    else:
        text, parts = _found_parts(messages, tokenizer, specials, only_last=only_last)
    bare = tuple(_without_space(text, part, specials) for part in parts)
    return MarkedText(text=text, answers=bare, adds_specials=False)


def mark_plain(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> MarkedText:
    """Prompt, answer and end of text, for a model without a chat template.

    Raises:
        BadCell: the tokenizer has no token that ends a text, so that no answer would end.
    """
    end = tokenizer.eos_token
    if not isinstance(end, str):
        raise BadCell("the tokenizer has no end-of-text token to end an answer with")
    text = prompt + answer + end
    return MarkedText(text=text, answers=((len(prompt), len(text)),), adds_specials=True)


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
    """The whole conversation, and the answers in it by rendering what is before each."""
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
        f"{whole[same : same + 40]!r}, so that nobody can say where the answer begins; {_WAY_OUT}"
    )


def _end(whole: str, before: str, until: str, content: str, specials: tuple[str, ...]) -> int:
    """Where an answer ends that is not the last.

    Some templates write an answer otherwise where it is the last one: with thoughts in front, or
    with the end of the text behind. It must then stand in the whole conversation word by word,
    and end with the same token.

    Args:
        before: what comes before the answer, a beginning of `whole`.
        until: the conversation up to the answer, where it is the last.
        content: what the answer says.
    """
    if whole.startswith(until) and until.startswith(before):
        return len(until)
    start = len(before)
    # Many templates strip what is said; it is tried first as it is.
    for said in (content, content.strip()):
        stop = start + len(said)
        ends = [end for end in specials if whole.startswith(end, stop) and said + end in until]
        if ends and whole.startswith(said, start):
            return stop + len(ends[0])
    same = _common_length(whole, until)
    raise BadCell(
        "the chat template writes an answer otherwise where more follows: "
        f"{whole[same : same + 40]!r} instead of {until[same : same + 40]!r}, so that nobody can "
        f"say where it ends; {_WAY_OUT}"
    )


def _marked_parts(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    specials: tuple[str, ...],
    *,
    only_last: bool,
) -> tuple[str, list[Part]]:
    """The whole conversation, and the answers in it by the template's own marks."""
    text, marks = apply_template_with_marks(messages, tokenizer)
    parts = _joined(_with_end(text, [(a, b) for a, b in marks if a < b], specials))
    # The last answer is where another one would change the text.
    last = messages[-1]
    other = {**last, "content": "b" if last["content"].lstrip().startswith("a") else "a"}
    changed, _ = apply_template_with_marks([*messages[:-1], other], tokenizer)
    content_begins = _common_length(text, changed)
    last_parts = [(a, b) for a, b in parts if b > content_begins]
    _check_says("".join(text[a:b] for a, b in last_parts), last)
    return text, last_parts if only_last else parts


def _with_end(text: str, parts: list[Part], specials: tuple[str, ...]) -> list[Part]:
    """Marked parts with the token that ends a turn, where the template leaves it out of its marks.

    It is what comes after the last part: there, no other turn begins.
    """
    following = [token for token in specials if parts and text.startswith(token, parts[-1][1])]
    if not following:
        return parts
    end = following[0]
    return [(a, b + len(end) if text.startswith(end, b) else b) for a, b in parts]


def _joined(parts: list[Part]) -> list[Part]:
    """Parts that touch as one."""
    joined: list[Part] = []
    for start, stop in parts:
        if joined and start <= joined[-1][1]:
            start = joined.pop()[0]
        joined.append((start, stop))
    return joined


def _without_space(text: str, part: Part, specials: tuple[str, ...]) -> Part:
    """The part without white space after the token that ends its turn."""
    start, stop = part
    bare = text[start:stop].rstrip()
    return (start, start + len(bare)) if bare.endswith(specials) else part


def _check_says(part: str, message: Message) -> None:
    """Refuse a template that drops what a message says; thoughts in front may be left out."""
    last_word = message["content"].split()[-1]
    if last_word not in part:
        raise BadCell(
            f"the chat template does not write the answer {message['content'][:40]!r} where it "
            f"should stand: there is {part[:40]!r}"
        )


def _common_length(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
