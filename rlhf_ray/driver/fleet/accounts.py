"""The accounts of recovery: a line per event in events.jsonl, sums for the metrics."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ray.calls import MemberName
from rlhf_ray.disk_space import full_disk_said
from rlhf_ray.losses import Lost

FILE_NAME = "events.jsonl"
_MAX_NAMES = 4
# Kinds of events: an engine is lost; another one serves in its place.
ENGINE_LOST, ENGINE_BACK = "engine_lost", "engine_back"
# A worker of a role that trains is lost; all of them have started again and are where they were.
ROLE_LOST, ROLE_BACK = "role_lost", "role_back"


@dataclass(kw_only=True, slots=True)
class _Recovery:
    """One loss: when it was noticed, and how many groups were issued again."""

    lost: Lost
    began: float
    groups: int = 0


@dataclass(kw_only=True, slots=True)
class _Sums:
    """Sums over the events since the last step's metrics."""

    lost: int = 0
    back: int = 0
    groups: int = 0
    seconds: float = 0.0
    ranks: int = 0
    heals: int = 0
    updates: int = 0


@dataclass(kw_only=True, slots=True)
class RecoveryAccounts:
    """Writes events and adds them up.

    Args:
        folder: output folder of the run.
        say: shows a sentence.
        snapshot_bytes: of the last snapshot of the roles that train.
    """

    folder: Path
    say: Callable[[str], None]
    snapshot_bytes: int = 0
    _open: dict[int, list[_Recovery]] = field(default_factory=dict)  # by place
    _ranks: list[float] = field(default_factory=list)  # times of losses
    _sums: _Sums = field(default_factory=_Sums)
    _first: Lost | None = None

    @property
    def first(self) -> Lost | None:
        """The first loss of this process."""
        return self._first

    def lost(self, lost: Lost, *, where: str, next_engine: MemberName, now: float) -> None:
        """An engine is lost, and `next_engine` starts in its place."""
        self._first = self._first or lost
        self._open.setdefault(lost.member.rank, []).append(_Recovery(lost=lost, began=now))
        self._sums.lost += 1
        self._write(
            {
                "event": ENGINE_LOST,
                "engine": str(lost.member),
                "what": lost.what,
                "reason": lost.reason,
                "where": where,
                "phase": lost.phase,
                "step": lost.step,
                "next_engine": str(next_engine),
            }
        )
        self.say(
            f"{lost.what} (phase {lost.phase}, step {lost.step}); {next_engine} starts in its "
            f"place, and the run goes on. See {FILE_NAME}"
        )

    def lost_unneeded(self, lost: Lost) -> None:
        """An engine is lost after the last step: nothing follows from it."""
        self.say(f"{lost.what} after the last step: the run needs it no more")

    def issued_again(self, lost: Lost) -> None:
        """A group that the lost engine was sampling goes to another one."""
        self._sums.groups += 1
        for recovery in self._open.get(lost.member.rank, ()):
            if recovery.lost.member == lost.member:
                recovery.groups += 1

    def back(self, engine: MemberName, *, step: int, now: float) -> None:
        """An engine serves in the place of lost ones."""
        recoveries = self._open.pop(engine.rank, [])
        if not recoveries:
            return
        seconds = now - recoveries[0].began
        groups = sum(recovery.groups for recovery in recoveries)
        self._sums.back += 1
        self._sums.seconds += seconds
        self._write(
            {
                "event": ENGINE_BACK,
                "engine": str(engine),
                "in_place_of": [str(recovery.lost.member) for recovery in recoveries],
                "step": step,
                "seconds": round(seconds, 3),
                "groups_issued_again": groups,
            }
        )
        self.say(
            f"{engine} serves, {seconds:.0f} s after the loss; {groups} groups were issued again"
        )

    def rank_lost(self, lost: Lost, *, where: str, now: float) -> None:
        """A rank of a role that trains is lost, and all ranks of these roles were ended."""
        self._first = self._first or lost
        self._ranks.append(now)
        self._sums.ranks += 1
        self._write(
            {
                "event": ROLE_LOST,
                "role": lost.member.role,
                "worker": str(lost.member),
                "what": lost.what,
                "reason": lost.reason,
                "where": where,
                "phase": lost.phase,
                "step": lost.step,
            }
        )
        self.say(
            f"{lost.what} (phase {lost.phase}, step {lost.step}); the roles that train start "
            f"again, and the run goes on. See {FILE_NAME}"
        )

    def ranks_back(
        self,
        lost: Sequence[Lost],
        *,
        names: Sequence[MemberName],
        step: int,
        source: str,
        num_again: int,
        now: float,
    ) -> None:
        """The roles that train are where they were.

        Args:
            lost: losses that they are healed of.
            names: of all ranks.
            source: of their states.
            num_again: updates since then, which were done again.
        """
        seconds = now - self._ranks[0]
        self._ranks.clear()
        self._sums.heals += 1
        self._sums.updates += num_again
        self._sums.seconds += seconds
        self._write(
            {
                "event": ROLE_BACK,
                "workers": [str(name) for name in names],
                "in_place_of": [str(one.member) for one in lost],
                "step": step,
                "seconds": round(seconds, 3),
                "source": source,
                "updates_done_again": num_again,
            }
        )
        self.say(
            f"{', '.join(map(str, names[:_MAX_NAMES]))}{' ...' if len(names) > _MAX_NAMES else ''} "
            f"go on, {seconds:.0f} s after the loss: from {source}, with {num_again} updates done "
            f"again"
        )

    def metrics(self) -> dict[str, float]:
        """Sums since the last call."""
        sums, self._sums = self._sums, _Sums()
        return {
            "recovery/lost_engines": float(sums.lost),
            "recovery/engines_back": float(sums.back),
            "recovery/groups_issued_again": float(sums.groups),
            "recovery/seconds": sums.seconds,
            "recovery/lost_ranks": float(sums.ranks),
            "recovery/training_restarts": float(sums.heals),
            "recovery/updates_done_again": float(sums.updates),
            "recovery/snapshot_bytes": float(self.snapshot_bytes),
        }

    def _write(self, event: dict[str, Any]) -> None:
        time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        path = self.folder / FILE_NAME
        line = json.dumps({"time": time, **event}) + "\n"
        # A full disk may have torn the last line: what follows must not become a part of it.
        begin = "\n" if _ends_within_a_line(path) else ""
        with full_disk_said(path), path.open("a", encoding="utf-8") as file:
            file.write(begin + line)


def num_lost(folder: Path, event: str = ENGINE_LOST) -> int:
    """Engines (or, by the kind of event, ranks) that runs of this folder have lost and gone on."""
    path = folder / FILE_NAME
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return sum(_event_of(line) == event for line in lines)


def _event_of(line: str) -> Any:
    """Kind of the event of a line; None for a line that was torn."""
    try:
        values = json.loads(line)
    except ValueError:
        return None
    return values.get("event") if isinstance(values, dict) else None


def _ends_within_a_line(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
