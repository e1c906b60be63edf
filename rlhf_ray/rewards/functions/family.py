"""Descendants of a process, read from /proc.

psutil reads all processes of a machine to find the children of one; the keeper asks four times a
second, on nodes with thousands of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Children of a process, oldest first; none if it has ended."""
    found: list[int] = []
    try:
        # The kernel keeps children by the thread that forked them.
        for thread in os.listdir(_PROC / str(pid) / "task"):
            file = _PROC / str(pid) / "task" / thread / "children"
            found += map(int, file.read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        # It has ended, or the kernel was built without these files (CONFIG_PROC_CHILDREN).
        if not (_PROC / "self/task" / str(os.getpid()) / "children").exists():
            return _children_by_scan(pid)
    return found


def family(pid: int) -> list[int]:
    """A process and all of its descendants that are not its own zombies' remains."""
    found = [pid]
    for member in found:
        found += (child for child in children(member) if child not in found)
    return found


def private_bytes(pids: Iterable[int]) -> int:
    """Memory of processes that is theirs alone, as far as it is resident; 0 for ended ones."""
    total = 0
    for pid in pids:
        try:
            _, resident, shared, *_ = (_PROC / str(pid) / "statm").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += (int(resident) - int(shared)) * _PAGE_BYTES
    return total


def _children_by_scan(parent: int) -> list[int]:
    found: list[int] = []
    for name in filter(str.isdigit, os.listdir(_PROC)):
        try:
            status = (_PROC / name / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The second field is the program's name in brackets, which may hold anything.
        if int(status.rpartition(")")[2].split()[1]) == parent:
            found.append(int(name))
    return sorted(found)
