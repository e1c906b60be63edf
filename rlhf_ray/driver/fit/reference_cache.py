"""Log-probabilities of answers under the model that a policy starts from: computed once, kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.atomic_file import write_atomically
from rlhf_ray.calls import Call, CallWaiter
from rlhf_ray.objectives.preference_batches import PreferenceGroup
from rlhf_ray.records.preferences import PreferenceSamples

FILE_NAME = "reference_logprobs.json"
# What is sent to the ranks at a time: a pass of some minutes at most, with a deadline of its own.
_FAMILIES_AT_ONCE = 2048

Families = Sequence[PreferenceGroup]
# From families to the log-probabilities of their answers.
Score = Callable[[Families], list[tuple[float, ...]]]


class ScoringRole(Protocol):
    """See `cluster.roles.fit.FittedRanks`."""

    def score_answers(self, samples: Sequence[Any]) -> list[Call]: ...


class AnswerScorer:
    """Asks the ranks for the log-probabilities of answers under the policy as it is.

    Args:
        spread: families to the samples of every rank.
        timeout_s: of one pass over some thousands of families.
    """

    def __init__(
        self,
        role: ScoringRole,
        watch: CallWaiter,
        spread: Callable[[Families], Sequence[PreferenceSamples]],
        *,
        timeout_s: float,
    ) -> None:
        self._role = role
        self._watch = watch
        self._spread = spread
        self._timeout_s = timeout_s

    def __call__(self, preference_groups: Families) -> list[tuple[float, ...]]:
        """Per family, in nats, those of its answers.

        Raises:
            RunFailed: a worker failed or was late.
        """
        found: list[tuple[float, ...]] = []
        for start in range(0, len(preference_groups), _FAMILIES_AT_ONCE):
            found += self._some(preference_groups[start : start + _FAMILIES_AT_ONCE])
        return found

    def _some(self, preference_groups: Families) -> list[tuple[float, ...]]:
        per_rank = self._spread(preference_groups)
        calls = self._role.score_answers(per_rank)
        results = self._watch.results(calls, phase="reference", timeout_s=self._timeout_s)
        gathered: list[list[float]] = [[] for _ in preference_groups]
        for samples, scores in zip(per_rank, results, strict=True):
            # A family is on one rank, its answers in order.
            for number, score in zip(samples.prompts.tolist(), scores, strict=True):
                gathered[number].append(score)
        return [tuple(scores) for scores in gathered]


class ReferenceCache:
    """The file in which they are kept.

    Args:
        facts: plain values that they depend on: rows, model, precision. Others are a miss.
    """

    def __init__(self, output_dir: Path, facts: Any) -> None:
        self._path = output_dir / FILE_NAME
        self._fingerprint = hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def referenced(
        self, sets: Mapping[str, Families], score: Score, report: Callable[[str], None]
    ) -> dict[str, tuple[PreferenceGroup, ...]]:
        """The same families with their `reference_logprobs`, from the file or from `score`.

        The ranks must hold the weights that the policy starts from.

        Args:
            report: is told which of the two it is.
        """
        known = self._read()
        if known is None:
            num_answers = sum(
                len(preference_group.answers) for own in sets.values() for preference_group in own
            )
            report(f"log-probabilities of {num_answers} answers under the starting policy")
            known = {name: score(preference_groups) for name, preference_groups in sets.items()}
            self._write(known)
        else:
            report(f"log-probabilities under the starting policy are those of {self._path}")
        return {
            name: tuple(
                replace(preference_group, reference_logprobs=tuple(numbers))
                for preference_group, numbers in zip(preference_groups, known[name], strict=True)
            )
            for name, preference_groups in sets.items()
        }

    def _read(self) -> dict[str, Any] | None:
        """None where there is nothing, or what is there is of something else."""
        if not self._path.is_file():
            return None
        saved = json.loads(self._path.read_text(encoding="utf-8"))
        return saved["sets"] if saved["fingerprint"] == self._fingerprint else None

    def _write(self, sets: Mapping[str, list[tuple[float, ...]]]) -> None:
        """Write the file. Python writes a float so that the same one is read."""
        write_atomically(self._path, json.dumps({"fingerprint": self._fingerprint, "sets": sets}))
