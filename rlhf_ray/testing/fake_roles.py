"""Learner, critic, reference, builder and offline ranks that live in this process and do nothing.

They implement the protocols of `driver.roles`. A test subclasses one and overrides the methods
that it looks at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.checkpoint_files.manifest import seal_share
from rlhf_ray.evaluation.answers import MeasureSettings
from rlhf_ray.experience.waiting_groups import WaitingGroupFiles
from rlhf_ray.publish.base import POLICY, LearnerPart
from rlhf_ray.records import Coefficients
from rlhf_ray.testing.fakes import done


class _FakeRanks:
    """One rank that scores nothing and has nothing to save."""

    role = "rank"

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        return self._done(payload=[])

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return self._done()

    def load_checkpoint(self, folder: Path) -> list[Call]:
        return self._done()

    def seal_checkpoint(self, folder: Path, *, sync: bool) -> list[Call]:
        return self._done(signal=seal_share(folder, rank=0, world_size=1, sync=sync))

    def begin_checkpoint(self, folder: Path) -> list[Call]:
        self._begun = folder
        return self.save_checkpoint(folder)

    def written_checkpoint(self, *, wait_s: float) -> list[Call]:
        return self.seal_checkpoint(self._begun, sync=True)

    def _done(self, signal: Any = None, payload: Any = None) -> list[Call]:
        return [done(self.role, 0, signal=signal, payload=payload)]


class FakeLearner(_FakeRanks):
    """A learner without weights."""

    role = "learner"

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        return self._done(signal={})

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return self._done(signal=[])

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        return done(self.role, 0, signal=[]), []

    def weight_shapes(self) -> Call:
        return done(self.role, 0, signal={})

    def offload_states(self, part: LearnerPart) -> list[Call]:
        return self._done()

    def reload_states(self) -> list[Call]:
        return self._done()


class FakeCritic(_FakeRanks):
    """A critic without weights."""

    role = "critic"

    def update(self, experiences: Sequence[Any]) -> list[Call]:
        return self._done(signal={})


class FakeReference(_FakeRanks):
    """A reference that takes any weights."""

    role = "reference"

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> list[Call]:
        return self._done()

    def begin_update(self) -> list[Call]:
        return self._done()

    def load_bucket(self, bucket: Any) -> list[Call]:
        return self._done()

    def finish_update(self, version: int) -> list[Call]:
        return self._done()


class FakeBuilder:
    """A builder whose experience is empty; it writes and reads groups as the real one does."""

    def __init__(self) -> None:
        self._waiting = WaitingGroupFiles()

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call:
        return done("builder", 0, signal={}, payload=((), ()))

    def measure(
        self, groups: Sequence[Any], reference: Sequence[Any], settings: MeasureSettings
    ) -> Call:
        return done("builder", 0, signal=[])

    def write_rollouts(
        self, path: Path, groups: Sequence[Any], updated: Sequence[Any] = ()
    ) -> Call:
        return done("builder", 0)

    def finish_rollouts(self) -> Call:
        return done("builder", 0)

    def save_groups(self, path: Path, groups: Sequence[Any], *, in_background: bool) -> Call:
        self._waiting.save(path, groups, in_background=in_background)
        return done("builder", 0)

    def written_groups(self, *, wait_s: float) -> Call:
        return done("builder", 0, signal=self._waiting.written(wait_s=wait_s))

    def seal_groups(self, folder: Path, *, sync: bool) -> Call:
        return done("builder", 0, signal=self._waiting.seal(folder, sync=sync))

    def load_groups(self, path: Path, num_groups: int) -> Call:
        summaries, groups = self._waiting.load(path, num_groups)
        return done("builder", 0, signal=summaries, payload=tuple(groups))

    def sample_texts(self, groups: Sequence[Any]) -> Call:
        return done("builder", 0, signal=[f"answer to {group}" for group in groups])


class FakeOfflineRanks(_FakeRanks):
    """Ranks that learn from examples; their loss is always 1."""

    role = "learner"

    def update(self, samples: Sequence[Any]) -> list[Call]:
        return self._done(signal={"train/loss": 1.0})

    def evaluate(self, samples: Sequence[Any]) -> list[Call]:
        return self._done(signal={"eval/loss": 1.0})

    def score_answers(self, samples: Sequence[Any]) -> list[Call]:
        return self._done(signal=[])
