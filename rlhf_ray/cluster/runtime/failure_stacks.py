"""The report of a failure: lost nodes, a log, and what the workers are doing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.runtime.diagnose import dump_stacks, on_nodes, tail_log
from rlhf_ray.cluster.runtime.nodes import lost_nodes, lost_words
from rlhf_ray.cluster.runtime.process import ProcessInfo
from rlhf_ray.failure_report import say_failed

# For the answers of all nodes together. They are asked at once, so a lost node delays nothing else.
REPORT_S = 20.0
_TAIL_LINES = 25
# A run has hundreds of workers, and those of a role mostly do the same.
_STACKS_PER_ROLE = 3
_ADDRESS = re.compile(r"0x[0-9a-f]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """The workers of one node that are asked, the culprit among them or None."""

    infos: Sequence[ProcessInfo]
    culprit: ProcessInfo | None


def failure_report(
    workers: dict[MemberName, ProcessInfo], culprit: MemberName, headline: str, where: str
) -> str:
    """The report of a failure: lost nodes first, then what the workers are asked for.

    Args:
        workers: all that are watched.
        headline: what happened to the culprit, where and why.
        where: phase and step.
    """
    parts = [headline]
    on_node: dict[str, list[str]] = {}
    for name, info in workers.items():
        on_node.setdefault(info.node_id, []).append(str(name))
    lost = lost_nodes(on_node)
    if lost:
        # Whoever failed first needed something of it.
        event, cause = lost_words(lost, on_node)
        parts = [f"{event} {where}: {cause}", f"--- seen as: {headline}"]
    say_failed(parts[0], f"collecting logs and stacks of workers (at most {REPORT_S:g} s)")
    gone = {node.node_id: f"on the lost node {node.name}" for node in lost}
    return "\n".join([*parts, *worker_report(workers, culprit, gone)])


def worker_report(
    workers: dict[MemberName, ProcessInfo], culprit: MemberName, gone: Mapping[str, str]
) -> list[str]:
    """The end of the culprit's log, its stacks, and those of other workers.

    Every role is shown with one worker at least. Workers of a role with the same stacks are shown
    once, and a role with at most three different stacks.

    Args:
        gone: what to show in place of stacks for workers of a lost node, by node id.
    """
    by_node: dict[str, list[MemberName]] = {}
    for name, info in workers.items():
        by_node.setdefault(info.node_id, []).append(name)
    questions = {
        node: _Question(
            infos=[workers[name] for name in names],
            culprit=workers[culprit] if culprit in names else None,
        )
        for node, names in by_node.items()
        if node not in gone
    }
    answers = on_nodes(_answer, questions, timeout_s=REPORT_S)
    stacks: dict[MemberName, str] = {}
    tail = ""
    for node, names in by_node.items():
        if node in gone:
            stacks.update(dict.fromkeys(names, gone[node]))
            continue
        answer = answers[node]
        if isinstance(answer, Exception):
            answer = (f"not to be had: {_first_line(answer)}",) * (len(names) + 1)
        own_tail, *own_stacks = answer
        tail = own_tail if culprit in names else tail
        stacks.update(zip(names, own_stacks, strict=True))
    is_known = culprit in workers and workers[culprit].node_id not in gone
    parts = [f"--- end of the log of {culprit}:\n{tail or '(empty)'}"] if is_known else []
    return parts + describe_stacks(stacks, culprit)


def _answer(question: _Question) -> tuple[str, ...]:
    """The culprit's log, then the stacks of every worker; runs on the node of the workers."""
    culprit = question.culprit
    return (tail_log(culprit, _TAIL_LINES) if culprit else "", *dump_stacks(question.infos))


def describe_stacks(stacks: dict[MemberName, str], culprit: MemberName) -> list[str]:
    """A paragraph for every kind of stacks in a role; the culprit's comes first."""
    kinds: dict[tuple[str, str], list[MemberName]] = {}
    for name in sorted(stacks, key=lambda name: name != culprit):
        role = "" if name == culprit else name.role
        kinds.setdefault((role, _ADDRESS.sub("", stacks[name])), []).append(name)
    parts: list[str] = []
    left_out: list[MemberName] = []
    shown: dict[str, int] = {}
    for (role, _), names in kinds.items():
        shown[role] = shown.get(role, 0) + 1
        if shown[role] > _STACKS_PER_ROLE:
            left_out += names
            continue
        same = f" (the same in {len(names) - 1} more of its role)" if len(names) > 1 else ""
        parts.append(f"--- stacks of {names[0]}{same}:\n{stacks[names[0]]}")
    if left_out:
        parts.append(f"--- other stacks, not shown: {len(left_out)} workers from {left_out[0]} on")
    return parts


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
