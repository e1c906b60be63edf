"""Log-probabilities of answers under the starting policy: computed once, then cached in a file."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.calls import CallWaiter
from rlhf_ray.driver.roles import OfflineRole
from rlhf_ray.mapped_rows import MappedRows
from rlhf_ray.objectives.preference_batches import PreferenceGroup
from rlhf_ray.records.preferences import PreferenceSamples

FILE_NAME = "reference_logprobs.json"
# Groups that are sent to the ranks at a time. Each such pass takes minutes at most and has its
# own deadline: a deadline for all groups would have to grow with the data.
_GROUPS_AT_ONCE = 2048

Groups = Sequence[PreferenceGroup]
# Maps groups to the log-probabilities of their answers, in nats, one tuple per group.
Score = Callable[[Groups], list[tuple[float, ...]]]


class AnswerScorer:
    """Asks the ranks for the log-probabilities of answers under the policy as it is.

    Args:
        spread: maps groups to the samples of every rank.
        timeout_s: deadline of one pass over some thousands of groups.
    """

    def __init__(
        self,
        role: OfflineRole,
        waiter: CallWaiter,
        spread: Callable[[Groups], Sequence[PreferenceSamples]],
        *,
        timeout_s: float,
    ) -> None:
        self._role = role
        self._waiter = waiter
        self._spread = spread
        self._timeout_s = timeout_s

    def __call__(self, preference_groups: Groups) -> list[tuple[float, ...]]:
        """Log-probabilities of the answers of each group, in nats.

        Raises:
            RunFailed: a worker failed or was late.
        """
        found: list[tuple[float, ...]] = []
        for start in range(0, len(preference_groups), _GROUPS_AT_ONCE):
            found += self._some(preference_groups[start : start + _GROUPS_AT_ONCE])
        return found

    def _some(self, preference_groups: Groups) -> list[tuple[float, ...]]:
        per_rank = self._spread(preference_groups)
        calls = self._role.score_answers(per_rank)
        results = self._waiter.results(calls, phase="reference", timeout_s=self._timeout_s)
        gathered: list[list[float]] = [[] for _ in preference_groups]
        for samples, scores in zip(per_rank, results, strict=True):
            # All answers of a group are on one rank, in order.
            for number, score in zip(samples.prompts.tolist(), scores, strict=True):
                gathered[number].append(score)
        return [tuple(scores) for scores in gathered]


class ReferenceCache:
    """The file that keeps the log-probabilities.

    Args:
        facts: plain values that they depend on: rows, model, precision. A file with other facts
            is a cache miss.
    """

    def __init__(self, output_dir: Path, facts: Any) -> None:
        self._path = output_dir / FILE_NAME
        self._fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def referenced(
        self, sets: Mapping[str, Groups], score: Score, report: Callable[[str], None]
    ) -> dict[str, Groups]:
        """The same groups with their `reference_logprobs`, from the file or from `score`.

        The ranks must hold the weights that the policy starts from.

        Args:
            report: takes a line for people that says which of the two it was.
        """
        known = self._read(sets, report)
        if known is None:
            num_answers = sum(
                len(preference_group.answers) for own in sets.values() for preference_group in own
            )
            report(f"log-probabilities of {num_answers} answers under the starting policy")
            known = {name: score(preference_groups) for name, preference_groups in sets.items()}
            self._write(known)
        else:
            report(f"log-probabilities under the starting policy are those of {self._path}")
        return {name: _referenced(own, known[name]) for name, own in sets.items()}

    def _read(
        self, sets: Mapping[str, Groups], report: Callable[[str], None]
    ) -> dict[str, Any] | None:
        """The saved numbers; None if there is no file, its facts are others, or it is damaged."""
        if not self._path.is_file():
            return None
        try:
            saved = json.loads(self._path.read_text(encoding="utf-8"))
            if saved["fingerprint"] != self._fingerprint:
                return None
            known = saved["sets"]
            whole = all(_answers(known[name]) == _expected(own) for name, own in sets.items())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            report(f"{self._path} is damaged, and is replaced")
            return None
        return known

    def _write(self, sets: Mapping[str, list[tuple[float, ...]]]) -> None:
        """Write the file. JSON in Python keeps every bit of a float."""
        write_atomically(self._path, json.dumps({"fingerprint": self._fingerprint, "sets": sets}))


def _referenced(preference_groups: Groups, known: Sequence[Sequence[float]]) -> Groups:
    """The groups with these numbers, of which memory has eight bytes each."""
    numbers, starts = array("d"), array("q", [0])
    for some in known:
        numbers.extend(some)
        starts.append(len(numbers))
    assert len(preference_groups) == len(known)

    def group(row: int) -> PreferenceGroup:
        own = tuple(numbers[starts[row] : starts[row + 1]])
        return replace(preference_groups[row], reference_logprobs=own)

    return MappedRows(range(len(preference_groups)), group)


def _answers(known: Sequence[Sequence[float]]) -> list[int]:
    """The number of answers of each group of the file, all of them with a number."""
    return [len([float(number) for number in numbers]) for numbers in known]


def _expected(preference_groups: Groups) -> list[int]:
    return [len(preference_group.answers) for preference_group in preference_groups]
