"""Conversion between kinds of samples, such as a preference to a demonstration."""

from __future__ import annotations

import math
from collections.abc import Callable

from rlhf_ray.data.prepare.conversion.chats import BrokenChat, split_answer
from rlhf_ray.data.prepare.conversion.contents import (
    Content,
    Demonstration,
    FeedbackContent,
    Preference,
    PromptOnly,
)
from rlhf_ray.data.prepare.conversion.messages import Message, as_context

Conversion = Callable[..., tuple[Content, ...]]


def convert(content: Content, kind: str) -> tuple[Content, ...]:
    """Convert a content to another kind: one, several or no contents.

    Raises:
        BrokenChat: the chat does not end with what the other kind needs.
    """
    if content.kind == kind:
        return (content,)
    return CONVERSIONS[content.kind, kind](content)


def pairs_of(content: Content) -> tuple[Content, ...]:
    """Split a ranking into one preference for each of its pairs; keep other contents."""
    if not isinstance(content, Preference) or content.ranking is None:
        return (content,)
    assert content.ranking_pairs is not None, "a ranking comes with its pairs"
    return tuple(
        Preference(
            prompt=content.prompt,
            chosen=content.ranking[better],
            rejected=content.ranking[worse],
            tools=content.tools,
        )
        for better, worse in content.ranking_pairs
    )


def has_ties(content: Content) -> bool:
    """Whether a ranking has answers of equal rank."""
    if not isinstance(content, Preference) or content.ranking is None:
        return False
    assert content.ranking_pairs is not None, "a ranking comes with its pairs"
    return len(content.ranking_pairs) < math.comb(len(content.ranking), 2)


def _demonstration_of_preference(content: Preference) -> tuple[Content, ...]:
    return (_demonstration(content, content.chosen),)


def _demonstration_of_feedback(content: FeedbackContent) -> tuple[Content, ...]:
    """Only a good answer becomes a demonstration."""
    if not content.good:
        return ()
    return (_demonstration(content, content.answer),)


def _demonstration(content: Preference | FeedbackContent, text: str) -> Demonstration:
    """Only this answer is learnt, and not those in the prompt."""
    answer = Message(role="assistant", content=text)
    return Demonstration(messages=(*as_context(content.prompt), answer), tools=content.tools)


def _prompt_of_demonstration(content: Demonstration) -> tuple[Content, ...]:
    """The reference is the text of the answer, without thoughts.

    Raises:
        BrokenChat: the answer calls tools, which is no text.
    """
    prompt, answer = split_answer(content.messages)
    if content.reference is None and "tool_calls" in answer.fields:
        raise BrokenChat("the answer calls tools, and the reference answer of a prompt is text")
    reference = answer.content if content.reference is None else content.reference
    return (PromptOnly(prompt=prompt, answer=reference, tools=content.tools),)


def _prompt_only(content: Preference | FeedbackContent) -> tuple[Content, ...]:
    return (PromptOnly(prompt=content.prompt, answer=None, tools=content.tools),)


def _feedback_of_preference(content: Preference) -> tuple[Content, ...]:
    return tuple(
        FeedbackContent(prompt=content.prompt, answer=answer, good=good, tools=content.tools)
        for answer, good in ((content.chosen, True), (content.rejected, False))
    )


# `config.prepare_sources.BECOMES` says the same without importing this; a test compares the two.
CONVERSIONS: dict[tuple[str, str], Conversion] = {
    ("preference", "demonstration"): _demonstration_of_preference,
    ("preference", "prompt"): _prompt_only,
    ("preference", "feedback"): _feedback_of_preference,
    ("demonstration", "prompt"): _prompt_of_demonstration,
    ("feedback", "demonstration"): _demonstration_of_feedback,
    ("feedback", "prompt"): _prompt_only,
}
