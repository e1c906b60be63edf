"""Where the answers stand in a conversation as the model sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.cells import BadCell
from rlhf_ray.data.messages import Message, apply_template, apply_template_with_marks, has_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What a template writes around the answers of the model where it marks them.
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


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
    answers: tuple[tuple[int, int], ...]
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
        messages: the last one is the assistant's.
        only_last: mark the last answer alone; every one that has text otherwise.

    Raises:
        BadCell: the template refuses the messages, or its rendering of a beginning is not how
            the whole begins, so that nobody can say what the model wrote.
    """
    specials = special_texts(tokenizer)
    if _MARK.search(_template_of(tokenizer)):
        text, parts = apply_template_with_marks(messages, tokenizer)
        parts = [(start, stop) for start, stop in parts if text[start:stop].strip()]
        parts = _with_marked_end(text, parts, specials)
    else:
        text = apply_template(messages, tokenizer, add_generation_prompt=False)
        wanted = [i for i, m in enumerate(messages) if m["role"] == "assistant" and has_text(m)]
        if only_last:
            wanted = wanted[-1:]
        parts = [_part(messages, index, text, tokenizer) for index in wanted]
    if not parts:
        raise BadCell("the chat template writes no answer of the assistant")
    ended = [_without_space(text, start, stop, specials) for start, stop in parts]
    return MarkedText(
        text=text, answers=tuple(ended[-1:] if only_last else ended), adds_specials=False
    )


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


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.get_chat_template()
    assert isinstance(template, str)
    return template


def _part(
    messages: Sequence[Message], index: int, whole: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """The answer `messages[index]` in the whole conversation, with all that the template adds."""
    before = apply_template(messages[:index], tokenizer, add_generation_prompt=True)
    _check_begins(whole, before, f"the {index} messages before an answer")
    if index == len(messages) - 1:
        return len(before), len(whole)
    until = apply_template(messages[: index + 1], tokenizer, add_generation_prompt=False)
    if whole.startswith(until) and until.startswith(before):
        return len(before), len(until)
    # Some templates write an answer otherwise where it is not the last (thoughts left out): it
    # must then stand there word by word, with the same end of turn.
    content = messages[index]["content"].strip()
    written = content + until[until.rfind(content) + len(content) :] if content else until
    start = len(before)
    if not whole.startswith(written, start):
        raise BadCell(
            f"the chat template writes message {index + 1}, an answer, otherwise in the whole "
            f"conversation: {whole[start : start + 40]!r} instead of {written[:40]!r}"
        )
    return start, start + len(written)


def _check_begins(whole: str, beginning: str, what: str) -> None:
    if whole.startswith(beginning):
        return
    same = next(i for i, c in enumerate(beginning) if i >= len(whole) or whole[i] != c)
    raise BadCell(
        f"the chat template renders {what} otherwise than in the whole conversation: "
        f"{beginning[same : same + 40]!r} instead of {whole[same : same + 40]!r}, so that nobody "
        "can say where the answer begins; give a template with {% generation %} marks "
        "(model.chat_template)"
    )


def _without_space(text: str, start: int, stop: int, specials: tuple[str, ...]) -> tuple[int, int]:
    """The part without white space after the token that ends its turn."""
    bare = text[start:stop].rstrip()
    return (start, start + len(bare)) if bare.endswith(specials) else (start, stop)


def _with_marked_end(
    text: str, parts: list[tuple[int, int]], specials: tuple[str, ...]
) -> list[tuple[int, int]]:
    """Marked parts with the token that ends a turn, where the template leaves it out of its marks.

    It is what comes after the last part: there, no other turn begins.
    """
    following = [token for token in specials if parts and text.startswith(token, parts[-1][1])]
    if not following:
        return parts
    end = following[0]
    return [(a, b + len(end) if text.startswith(end, b) else b) for a, b in parts]
