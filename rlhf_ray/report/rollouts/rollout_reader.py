"""Reading of rollout files within a bound of files, bytes and seconds.

A run of 512 prompts a step leaves gigabytes. The steps that are read spread evenly over the run,
coarse first, so that a bound that is reached early still leaves the whole run visible.
"""

from __future__ import annotations

import heapq
import math
import re
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rlhf_ray.prompt_choice import best_and_worst, prompt_rank
from rlhf_ray.report.forgiving_reads import ReadNotes, as_text, is_number, read_lines
from rlhf_ray.report.rollouts.answer_measures import StepMeasures

_STEP_FILE = re.compile(r"step_(\d+)\.jsonl")
_MAX_PROMPT_CHARACTERS = 4000
_MAX_ANSWER_CHARACTERS = 6000
_MAX_TOKENS = 2000
# Of every token, as `observe.rollout_log` writes them.
TOKEN_NUMBERS = ("logprobs", "advantages", "updated_logprobs")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadBounds:
    """Most that is read of one folder of rollouts.

    Attributes:
        kept_groups: groups of a step whose texts may be shown; all are counted.
        seconds: no further file is begun after this time.
    """

    files: int = 600
    bytes: int = 128 * 1024 * 1024
    seconds: float = 20.0
    kept_groups: int = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptGroup:
    """The answers of one prompt in one step that may be shown: the best and the worst.

    Attributes:
        column: step, or name of a model, under which the answers stand.
        mean, deviation: of the rewards of the whole group; None without rewards.
    """

    prompt_id: str
    prompt: str
    column: str
    num_samples: int
    mean: float | None
    deviation: float | None
    samples: tuple[Mapping[str, Any], ...]


@dataclass(kw_only=True, slots=True)
class RolloutContents:
    """Contents of the files that were read, in order of steps."""

    measures: list[StepMeasures] = field(default_factory=list)
    groups: list[KeptGroup] = field(default_factory=list)


def read_rollouts(
    folder: Path,
    notes: ReadNotes,
    bounds: ReadBounds | None = None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> RolloutContents:
    """Read `step_*.jsonl` of a folder, as `observe.rollout_log` writes them."""
    bounds = bounds or ReadBounds()
    found = _step_files(folder)
    chosen = _spread(found, bounds.files)
    limit = max(bounds.bytes // max(len(chosen), 1), 1024 * 1024)
    began, left = clock(), bounds.bytes
    read: dict[int, tuple[StepMeasures, list[KeptGroup]]] = {}
    num_cut = 0
    for step, path in _coarse_first(chosen):
        if clock() - began > bounds.seconds or left <= 0:
            break
        reader = _FileReader(step, bounds.kept_groups, min(limit, left))
        reader.read(path, notes)
        left -= reader.num_bytes
        num_cut += reader.is_cut
        read[step] = (reader.measures, reader.groups())
    if len(read) < len(found):
        notes.add(f"{folder.name}: {len(read)} of {len(found)} steps with files were read")
    if num_cut:
        notes.add(
            f"{folder.name}: of {num_cut} files only the first {limit / 2**20:.0f} MiB or less "
            f"were read"
        )
    ordered = [read[step] for step in sorted(read)]
    return RolloutContents(
        measures=[measures for measures, _ in ordered],
        groups=[group for _, groups in ordered for group in groups],
    )


def kept_group(rows: Sequence[Mapping[str, Any]], column: str) -> KeptGroup:
    """The answers of one prompt, bounded in length."""
    rewards = [float(row["reward"]) for row in rows if is_number(row.get("reward"))]
    mean = sum(rewards) / len(rewards) if rewards else None
    spread = sum((r - mean) ** 2 for r in rewards) if mean is not None else 0.0
    positions = best_and_worst(rewards) if len(rewards) == len(rows) else range(min(2, len(rows)))
    return KeptGroup(
        prompt_id=as_text(rows[0].get("prompt_id", ""), 200),
        prompt=as_text(rows[0].get("prompt", ""), _MAX_PROMPT_CHARACTERS),
        column=column,
        num_samples=len(rows),
        mean=mean,
        deviation=(spread / (len(rewards) - 1)) ** 0.5 if len(rewards) > 1 else None,
        samples=tuple(_bounded(rows[position]) for position in positions),
    )


class _FileReader:
    """Reads one file, and keeps the groups of the prompts with the smallest ranks."""

    def __init__(self, step: int, kept_groups: int, limit: int) -> None:
        self.measures = StepMeasures(step=step)
        self.num_bytes = 0
        self.is_cut = False
        self._kept_groups = kept_groups
        self._limit = limit
        # Largest rank first, to be replaced; the number makes equal ranks comparable.
        self._heap: list[tuple[int, int, KeptGroup]] = []

    def read(self, path: Path, notes: ReadNotes) -> None:
        for number, (_, group) in enumerate(
            groupby(self._rows(path, notes), key=lambda row: str(row.get("prompt_id")))
        ):
            rows = list(group)
            self.measures.add_group(rows)
            rank = prompt_rank(str(rows[0].get("prompt", "")))
            if len(self._heap) < self._kept_groups:
                entry = (-rank, -number, kept_group(rows, str(self.measures.step)))
                heapq.heappush(self._heap, entry)
            elif -rank > self._heap[0][0]:
                entry = (-rank, -number, kept_group(rows, str(self.measures.step)))
                heapq.heapreplace(self._heap, entry)
        self.measures.forget_texts()

    def groups(self) -> list[KeptGroup]:
        return [group for _, _, group in sorted(self._heap, key=lambda e: (e[0], e[1]))][::-1]

    def _rows(self, path: Path, notes: ReadNotes) -> Iterator[dict[str, Any]]:
        for row, self.num_bytes in read_lines(path, notes):
            yield row
            if self.num_bytes > self._limit:
                self.is_cut = True
                return


def _bounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an answer that is shown."""
    sample: dict[str, Any] = {
        "index": row.get("sample_index"),
        "text": as_text(row.get("response", ""), _MAX_ANSWER_CHARACTERS),
        "reward": row.get("reward") if is_number(row.get("reward")) else None,
        "finish": as_text(row.get("finish_reason") or "", 40),
        "tokens": row.get("response_tokens"),
    }
    parts = row.get("reward_parts")
    if isinstance(parts, dict):
        sample["parts"] = {str(k)[:60]: v for k, v in list(parts.items())[:20] if is_number(v)}
    versions = row.get("weight_versions")
    if isinstance(versions, list):
        spans = [span for span in versions[:100] if isinstance(span, list) and len(span) == 2]
        sample["versions"] = [span for span in spans if all(is_number(value) for value in span)]
    return sample | _tokens(row.get("tokens"))


def _tokens(tokens: Any) -> dict[str, Any]:
    """Ids and numbers of tokens, NaN for one that was not sampled; empty without them.

    They are arrays: as lists, those of a long run would take a gigabyte.
    """
    values = tokens if isinstance(tokens, dict) else {}
    ids = values.get("ids")
    if not isinstance(ids, list):
        return {}
    found: dict[str, Any] = {}
    try:
        found["ids"] = array("I", ids[:_MAX_TOKENS])
        for name in TOKEN_NUMBERS:
            numbers = values.get(name)
            if isinstance(numbers, list) and len(numbers) == len(ids):
                known = (math.nan if value is None else value for value in numbers[:_MAX_TOKENS])
                found[name] = array("f", known)
    except (TypeError, OverflowError):  # Another program wrote something else there.
        return {}
    return found if "logprobs" in found else {}


def _step_files(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((_STEP_FILE.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _spread(files: list[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most so many, evenly, with the first and the last."""
    if len(files) <= most:
        return files
    last = len(files) - 1
    return [files[i * last // (most - 1)] for i in range(most)]


def _coarse_first(files: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """First the two ends, then the middle, the quarters, and so on."""
    size = len(files)
    bits = max(size - 1, 1).bit_length()
    order = dict.fromkeys([0, size - 1] if size else [])
    order |= dict.fromkeys(int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits))
    return [files[i] for i in order if i < size]
