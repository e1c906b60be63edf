"""Requests to a scoring service, and the reading of its replies.

The protocol is in docs/rewards.md; `serving/requests.py` is its other end.
"""

from __future__ import annotations

import json
from typing import Any

from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.rewards.outcomes import ItemFailure, Outcome

_MAX_SHOWN_CHARACTERS = 300


class BadReply(ValueError):  # noqa: N818 - it reads as a sentence
    """The reply does not follow the protocol."""


def request_of(group: RolloutGroup) -> dict[str, Any]:
    """The JSON that asks for the scores of a group."""
    prompt = group.prompt
    request = {
        "prompt_id": prompt.prompt_id,
        "task": prompt.source,
        "prompt": prompt.text,
        "messages": list(prompt.messages),
        "answer": prompt.answer,
        "sample_indices": list(group.sample_indices),
        "responses": list(group.responses),
        "finish_reasons": list(group.finish_reasons),
    }
    # Services without tools need not know the field.
    return {**request, "tools": list(prompt.tools)} if prompt.tools else request


def read_reply(body: bytes, num_responses: int) -> list[Outcome]:
    """Read an outcome for every response.

    NaN and infinities are returned as they are; `rewards.scorer.with_part` refuses them.

    Raises:
        BadReply: the reply is not JSON, or does not have one score for each response.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadReply(f"the reply is not JSON ({error}): {shown(body)}") from error
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list):
        raise BadReply(f"the reply has no list `scores`: {shown(body)}")
    if len(scores) != num_responses:
        raise BadReply(f"the reply has {len(scores)} scores for {num_responses} responses")
    errors = reply.get("errors", [None] * num_responses)
    if not isinstance(errors, list) or len(errors) != num_responses:
        raise BadReply(
            f"`errors` of the reply is not a list of {num_responses} entries: {shown(body)}"
        )
    return [_outcome(score, error) for score, error in zip(scores, errors, strict=True)]


def shown(body: bytes) -> str:
    """The beginning of a body on one line, for messages."""
    text = " ".join(body[: 4 * _MAX_SHOWN_CHARACTERS].decode("utf-8", "replace").split())
    return text[:_MAX_SHOWN_CHARACTERS] or "(empty)"


def _outcome(score: Any, error: Any) -> Outcome:
    if error is not None:
        return _failure(f"the service: {str(error)[:_MAX_SHOWN_CHARACTERS]}")
    if score is None:
        return _failure("the service gave it no score (null)")
    # In Python, but not in JSON, true is a number.
    if isinstance(score, bool) or not isinstance(score, int | float):
        return _failure(f"the score {str(score)[:_MAX_SHOWN_CHARACTERS]!r} is not a number")
    try:
        return float(score)
    except OverflowError:
        return float("inf")


def _failure(message: str) -> ItemFailure:
    return ItemFailure(kind=FailureKind.REWARD_ERROR, message=message)
