"""Check of a sample's content: empty texts, broken chats, equal answers."""

from __future__ import annotations

from collections.abc import Iterator

from rlhf_ray.data.prepare.conversion.chats import order_problem
from rlhf_ray.data.prepare.conversion.contents import (
    Demonstration,
    FeedbackContent,
    Preference,
    PromptOnly,
    Removal,
    Sample,
    removal_of,
)
from rlhf_ray.data.prepare.conversion.mapping import BROKEN_CHAT
from rlhf_ray.data.prepare.conversion.messages import Messages

EMPTY = "empty"
IDENTICAL = "identical answers"


class ContentCheck:
    """Removes samples with empty texts, roles out of order, or a choice between equal answers."""

    def apply(self, sample: Sample) -> Sample | Removal:
        for reason, detail in self._problems(sample):
            return removal_of(sample, reason, detail)
        return sample

    def _problems(self, sample: Sample) -> Iterator[tuple[str, str]]:
        content = sample.content
        messages, ends_with_answer = _chat_of(sample)
        for number, message in enumerate(messages, start=1):
            if not any(text.strip() for text in message.texts()):
                yield EMPTY, f"message {number} of {len(messages)} ({message.role}) has no text"
        for text in content.texts():
            if not text.strip():
                yield EMPTY, f"a text of the {content.kind} is empty"
        problem = order_problem(messages, ends_with_answer=ends_with_answer) if messages else None
        if problem:
            yield BROKEN_CHAT, problem
        if isinstance(content, Preference):
            answers = [_normal(answer) for answer in content.answers()]
            if len(set(answers)) < len(answers):
                yield IDENTICAL, f"{len(answers)} answers, {len(set(answers))} of them different"


def _chat_of(sample: Sample) -> tuple[Messages, bool]:
    """The messages of a sample, and whether the last one must be an answer."""
    match sample.content:
        case Demonstration() as content:
            return content.messages, True
        case PromptOnly() | Preference() | FeedbackContent() as content:
            return content.prompt, False
        case _:
            return (), False


def _normal(text: str) -> str:
    """The text without differences of white space, but for line breaks and indentation."""
    lines = text.strip().splitlines()
    indents = (line[: len(line) - len(line.lstrip())] for line in lines)
    return "\n".join(a + " ".join(b.split()) for a, b in zip(indents, lines, strict=True))
