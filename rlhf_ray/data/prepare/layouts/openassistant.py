"""OpenAssistant: trees of messages with ranks, flat or nested (Köpf et al. 2023, arXiv:2304.07327).

Flat, as on the hub: a row for each message with `message_id`, `parent_id`, `text`, `role` (prompter
or assistant) and `rank` (0 is best); the rows of a tree stand together, parents before children.
Nested, as in the exports: a row for each tree, its root in `prompt`, the children in `replies`.
One tree is in memory at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.prepare.conversion.chats import BrokenChat, role_named
from rlhf_ray.data.prepare.conversion.contents import Content, Demonstration, PromptOnly
from rlhf_ray.data.prepare.conversion.mapping import (
    BROKEN_CHAT,
    BROKEN_ROW,
    Layout,
    Mapped,
    RowOutcome,
    Unusable,
    as_number,
    broken_row,
    unusable,
)
from rlhf_ray.data.prepare.conversion.messages import Message, Messages
from rlhf_ray.data.prepare.conversion.ranked import preference_of_ranking, preference_of_scores
from rlhf_ray.data.rows import BadCell, BrokenRow, Row, shown


@dataclass(slots=True, kw_only=True)
class _Node:
    """A message and its replies; `rank` is None if the message is not ranked."""

    message: Message
    rank: float | None
    replies: list[_Node] = field(default_factory=list)

    def ranked_replies(self) -> list[_Node]:
        """Replies from best to worst, then those without a rank in their order."""
        return sorted(self.replies, key=lambda node: (node.rank is None, node.rank or 0.0))


def _apply(rows: Iterable[Row | BrokenRow], kind: str) -> Iterator[RowOutcome]:
    for item in _trees(rows):
        if isinstance(item, Unusable):
            yield item
            continue
        row, root = item
        for number, content in enumerate(_contents(root, kind)):
            if isinstance(content, BrokenChat):
                yield unusable(row, BROKEN_CHAT, content)
            else:
                yield Mapped(row=row, content=content, suffix=f"-{number}" if number else "")


def _trees(rows: Iterable[Row | BrokenRow]) -> Iterator[tuple[Row, _Node] | Unusable]:
    """Yield every tree with the row of its root."""
    current: tuple[Row, _Node] | None = None
    nodes: dict[str, _Node] = {}
    for row in rows:
        if isinstance(row, BrokenRow):
            yield broken_row(row)
            continue
        try:
            if "prompt" in row.cells:
                yield row, _nested(row.cells["prompt"], "prompt")
                continue
            node, parent = _flat(row), row.cells.get("parent_id") or None
            if parent is not None and parent not in nodes:
                raise BadCell(
                    f"the message replies to {shown(parent)}, which is not an earlier message of "
                    "its tree; put the rows of a tree together, parents first"
                )
        except BadCell as error:
            yield unusable(row, BROKEN_ROW, error)
            continue
        except BrokenChat as error:
            yield unusable(row, BROKEN_CHAT, error)
            continue
        if parent is not None:
            nodes[parent].replies.append(node)
        else:
            if current is not None:
                yield current
            current, nodes = (row, node), {}
        nodes[row.cells["message_id"]] = node
    if current is not None:
        yield current


def _flat(row: Row) -> _Node:
    for column in ("message_id", "text", "role"):
        if not isinstance(row.cells.get(column), str):
            raise BadCell(f"column {column!r} must be text; it is {shown(row.cells.get(column))}")
    return _node(row.cells)


def _nested(value: Any, where: str) -> _Node:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise BadCell(f"{where} must be a message with text, role, replies; it is {shown(value)}")
    if not isinstance(value.get("role"), str):
        raise BadCell(f"the role of {where} must be text; it is {shown(value.get('role'))}")
    node = _node(value)
    replies = value.get("replies") or []
    if not isinstance(replies, list):
        raise BadCell(f"the replies of {where} must be a list; it is {shown(replies)}")
    node.replies = [_nested(reply, f"a reply to {where}") for reply in replies]
    return node


def _node(cells: dict[str, Any]) -> _Node:
    rank = cells.get("rank")
    return _Node(
        message=Message(role=role_named(cells["role"]), content=cells["text"]),
        rank=None if rank is None else as_number(rank, "'rank'"),
    )


def _contents(root: _Node, kind: str) -> Iterator[Content | BrokenChat]:
    if kind == "prompt":
        yield PromptOnly(prompt=(root.message,), answer=None)
    elif kind == "demonstration":
        yield _best_chat(root)
    else:
        yield from _preferences(root, ())


def _best_chat(root: _Node) -> Content | BrokenChat:
    """The chat along the best-ranked replies, up to its last answer."""
    messages, node = [root.message], root
    while node.replies:
        node = node.ranked_replies()[0]
        messages.append(node.message)
    while messages and messages[-1].role != "assistant":
        messages.pop()
    if not messages:
        return BrokenChat("the tree has no answer")
    return Demonstration(messages=tuple(messages))


def _preferences(node: _Node, before: Messages) -> Iterator[Content]:
    """Yield a preference for every question with at least two ranked answers."""
    prompt = (*before, node.message)
    ranked = [reply for reply in node.ranked_replies() if reply.rank is not None]
    if node.message.role == "user" and len(ranked) > 1:
        answers = [reply.message.content for reply in ranked]
        ranks = [reply.rank for reply in ranked]
        if len(set(ranks)) == len(ranks):
            yield preference_of_ranking(prompt, answers)
        elif len(set(ranks)) > 1:
            scores = [-(rank or 0.0) for rank in ranks]
            by_score = preference_of_scores(prompt, answers, scores)
            # A difference of ranks does not measure quality.
            yield dataclasses.replace(by_score, margin=None)
    for reply in node.replies:
        yield from _preferences(reply, prompt)


OPENASSISTANT = Layout(
    needs=(("text", "prompt"), ("message_id", "prompt")),
    apply=_apply,
    reads=("parent_id", "role", "rank", "replies"),
    numbers=("rank",),
)
