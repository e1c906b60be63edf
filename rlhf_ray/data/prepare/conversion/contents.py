"""Samples and their five kinds of content."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf_ray.data.chat_fields import Tool
from rlhf_ray.data.prepare.conversion.messages import (
    Messages,
    Transform,
    contents_of,
    first_user_text,
    joined,
    mapped_messages,
    messages_json,
    tools_json,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Text:
    """Raw text, for pre-training."""

    kind: ClassVar[str] = "text"
    text: str

    def opening(self) -> str:
        return self.text

    def texts(self) -> tuple[str, ...]:
        return (self.text,)

    def sequences(self) -> tuple[str, ...]:
        return (self.text,)

    def mapped(self, change: Transform) -> Text:
        return Text(text=change(self.text))

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text}


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptOnly:
    """A prompt, with a reference answer (or None) that rewards may compare with."""

    kind: ClassVar[str] = "prompt"
    prompt: Messages
    answer: str | None
    tools: tuple[Tool, ...] = ()

    def opening(self) -> str:
        return first_user_text(self.prompt)

    def texts(self) -> tuple[str, ...]:
        return (*contents_of(self.prompt), *((self.answer,) if self.answer is not None else ()))

    def sequences(self) -> tuple[str, ...]:
        return (joined(self.prompt),)

    def mapped(self, change: Transform) -> PromptOnly:
        answer = None if self.answer is None else change(self.answer)
        return dataclasses.replace(self, prompt=mapped_messages(self.prompt, change), answer=answer)

    def to_json(self) -> dict[str, Any]:
        prompt = messages_json(self.prompt)
        return {"prompt": prompt, "answer": self.answer, **tools_json(self.tools)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Demonstration:
    """A chat that ends with the answer to imitate.

    Attributes:
        reference: the short answer for rewards, if the layout has one; used only when the
            demonstration becomes a prompt.
    """

    kind: ClassVar[str] = "demonstration"
    messages: Messages
    reference: str | None = None
    tools: tuple[Tool, ...] = ()

    def opening(self) -> str:
        return first_user_text(self.messages)

    def texts(self) -> tuple[str, ...]:
        return contents_of(self.messages)

    def sequences(self) -> tuple[str, ...]:
        return (joined(self.messages),)

    def mapped(self, change: Transform) -> Demonstration:
        return dataclasses.replace(self, messages=mapped_messages(self.messages, change))

    def to_json(self) -> dict[str, Any]:
        return {"messages": messages_json(self.messages), **tools_json(self.tools)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Two or more answers to one prompt, in an order of preference.

    Attributes:
        margin: by how much `chosen` is better, in the source's own unit; None if unknown.
        ranking: all answers, best first, from `chosen` to `rejected`; None if there are only two.
        ranking_pairs: (better, worse) indices into `ranking`, one for every pair whose order is
            known (answers of equal rank make no pair). None if `ranking` is None.
    """

    kind: ClassVar[str] = "preference"
    prompt: Messages
    chosen: str
    rejected: str
    margin: float | None = None
    ranking: tuple[str, ...] | None = None
    ranking_pairs: tuple[tuple[int, int], ...] | None = None
    tools: tuple[Tool, ...] = ()

    def answers(self) -> tuple[str, ...]:
        return self.ranking if self.ranking is not None else (self.chosen, self.rejected)

    def opening(self) -> str:
        return first_user_text(self.prompt)

    def texts(self) -> tuple[str, ...]:
        return (*contents_of(self.prompt), *self.answers())

    def sequences(self) -> tuple[str, ...]:
        prompt = joined(self.prompt)
        return tuple(f"{prompt}\n{answer}" for answer in self.answers())

    def mapped(self, change: Transform) -> Preference:
        return dataclasses.replace(
            self,
            prompt=mapped_messages(self.prompt, change),
            chosen=change(self.chosen),
            rejected=change(self.rejected),
            ranking=None if self.ranking is None else tuple(map(change, self.ranking)),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": messages_json(self.prompt),
            "chosen": self.chosen,
            "rejected": self.rejected,
            "margin": self.margin,
            "ranking": None if self.ranking is None else list(self.ranking),
            "ranking_pairs": (
                None if self.ranking_pairs is None else [list(pair) for pair in self.ranking_pairs]
            ),
            **tools_json(self.tools),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackContent:
    """One answer labelled good or bad."""

    kind: ClassVar[str] = "feedback"
    prompt: Messages
    answer: str
    good: bool
    tools: tuple[Tool, ...] = ()

    def opening(self) -> str:
        return first_user_text(self.prompt)

    def texts(self) -> tuple[str, ...]:
        return (*contents_of(self.prompt), self.answer)

    def sequences(self) -> tuple[str, ...]:
        return (f"{joined(self.prompt)}\n{self.answer}",)

    def mapped(self, change: Transform) -> FeedbackContent:
        return dataclasses.replace(
            self, prompt=mapped_messages(self.prompt, change), answer=change(self.answer)
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt": messages_json(self.prompt),
            "answer": self.answer,
            "good": self.good,
            **tools_json(self.tools),
        }


# Every kind has: `opening` (the text that identifies the question or document), `texts` (all
# texts that are cleaned), `sequences` (the texts that a model reads at once, whose lengths are
# limited), `mapped` (a copy with every text changed) and `to_json` (the canonical fields).
Content = Text | PromptOnly | Demonstration | Preference | FeedbackContent


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A content and its origin.

    Attributes:
        sample_id: made unique when the sample is stored.
        where: file and line, for messages.
        left_out: columns of its row that are not part of it.
        notes: what is read otherwise than the row may have said it.
    """

    sample_id: str
    task: str
    source: str
    where: str
    content: Content
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The canonical record."""
        return {
            "id": self.sample_id,
            "task": self.task,
            "source": self.source,
            **self.content.to_json(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """A sample that was removed, or a row that gave no sample."""

    sample_id: str
    source: str
    where: str
    reason: str
    detail: str


def removal_of(sample: Sample, reason: str, detail: str) -> Removal:
    """Make the removal of a sample."""
    return Removal(
        sample_id=sample.sample_id,
        source=sample.source,
        where=sample.where,
        reason=reason,
        detail=detail,
    )
