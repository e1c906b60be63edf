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


def family(pid: int, *, enough: int | None = None) -> list[int]:
    """A process and its descendants, parents before their children.

    Args:
        enough: stop after this many; in a family that grows fast, counting takes long.
    """
    found = {pid: None}  # keeps the order
    members = [pid]
    for member in members:
        if enough is not None and len(members) >= enough:
            break
        new = [child for child in children(member) if child not in found]
        found.update(dict.fromkeys(new))
        members += new
    return members


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
            status = (_PROC / name / "stat").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The second field is the program's name in brackets, which may hold anything.
        if int(status.rpartition(")")[2].split()[1]) == parent:
            found.append(int(name))
    return sorted(found)
