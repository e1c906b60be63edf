"""Replies of the process that runs reward functions, checked by the worker.

The functions run in the process that replies. Whatever they write to its socket arrives here, and
whatever they patch (`math.isfinite`, `json.dumps`) works for them. So a reply counts only if it
names the call and the sample, and its value is checked again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.answers import Answer, from_message, to_message
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.rewards.protocol import StepRewards

_KINDS = {
    "error": FailureKind.REWARD_ERROR,
    "not_finite": FailureKind.REWARD_NOT_FINITE,
    "limit": FailureKind.REWARD_LIMIT,
}
_MAX_MESSAGE_CHARACTERS = 4000
_BASE_BYTES = 1 << 20
# A reward, an end, and their commas, for a step of one character.
_BYTES_PER_CHARACTER = 64


class UnexpectedReply(ValueError):  # noqa: N818 - it reads as a sentence
    """A message is not the reply that is due."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The reply that is due.

    Attributes:
        call: a secret of this call, which no function is told.
        item: number of the item in the call.
        response: the text that is scored.
    """

    call: str
    item: int
    response: str

    @property
    def max_bytes(self) -> int:
        """Length of the longest valid reply."""
        return _BASE_BYTES + _BYTES_PER_CHARACTER * len(self.response)


def read_reply(data: bytes, expected: Expected) -> Answer | ItemFailure:
    """Read the outcome of one item.

    Raises:
        UnexpectedReply: it is not the reply to this item.
    """
    reply = _read_object(data)
    # `is`-like strictness: True == 1, and a reply to item 1 is no reply to item True.
    if reply.get("call") != expected.call or type(reply.get("item")) is not int:
        raise UnexpectedReply("a message that the worker did not ask for")
    if reply["item"] != expected.item:
        raise UnexpectedReply(f"a reply to item {reply['item']} where item {expected.item} was due")
    if "failed" in reply:
        return _failure(reply)
    checked = to_message(_returned(reply), expected.response)
    return _failure(checked) if "failed" in checked else from_message(checked)


def _read_object(data: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnexpectedReply("a message that is not JSON") from error
    if not isinstance(reply, dict):
        raise UnexpectedReply("a message that is not a JSON object")
    return reply


def _returned(reply: dict[str, Any]) -> Any:
    if "value" in reply:
        return reply["value"]
    rewards, ends = reply.get("rewards"), reply.get("ends")
    if not isinstance(rewards, list) or not isinstance(ends, list):
        raise UnexpectedReply("a reply without a value")
    return StepRewards(rewards=tuple(rewards), ends=tuple(ends))


def _failure(reply: dict[str, Any]) -> ItemFailure:
    kind, message = reply["failed"], reply.get("message")
    if not isinstance(kind, str) or kind not in _KINDS or not isinstance(message, str):
        raise UnexpectedReply("a failure without kind and message")
    return ItemFailure(kind=_KINDS[kind], message=message[:_MAX_MESSAGE_CHARACTERS])
