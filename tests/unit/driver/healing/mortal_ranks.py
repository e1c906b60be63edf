"""Learner and critic that die when a test wants it, in a run over the fakes of the fleet.

The weights of a role are the list of all that it has learnt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts
from rlhf_ray.driver.healing.parts import HealingSettings
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.run_checkpoints import RunCheckpoints
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.losses import LossKeepers
from rlhf_ray.publish.base import POLICY
from rlhf_ray.records import Coefficients
from tests.unit.driver.fleet.faulty_engines import FaultyEngines, FleetRun, scores

Learnt = tuple[Any, ...]


class MortalRank:
    """The only rank of a role that trains."""

    def __init__(self, role: str, engines: FaultyEngines) -> None:
        self._engines = engines
        self.name = MemberName(role=role, rank=0)
        self.learnt: Learnt = ()

    def start_again(self) -> None:
        name = self.name
        self.name = MemberName(role=name.role, rank=0, incarnation=name.incarnation + 1)
        self.learnt = ()

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        return [self._call("score", payload=len(self.learnt))]

    def take_state(self) -> list[Call]:
        return [self._call("take_state", signal=8, payload=self.learnt)]

    def restore_state(self, states: Sequence[Learnt]) -> list[Call]:
        (self.learnt,) = states
        return [self._call("restore_state")]

    def save_checkpoint(self, folder: Path) -> list[Call]:
        return [self._call("save_checkpoint")]

    def _learn(self, lesson: Any, **metrics: float) -> list[Call]:
        self.learnt = (*self.learnt, lesson)
        return [self._call("update", signal=metrics | {f"{self.name.role}/n": len(self.learnt)})]

    def _call(self, method: str, signal: Any = None, payload: Any = None) -> Call:
        return self._engines.call(f"{self.name.role} {method}", self.name, signal, payload)


class MortalLearner(MortalRank):
    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        return self._learn((texts, coefficients.kl), **{"kl/reference": 3.0})

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        return self._call("weight_buckets", signal=[-1, len(self.learnt)]), []

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [self._call("score_sequences", signal=scores(len(self.learnt), sequences))]


class MortalCritic(MortalRank):
    def update(self, experiences: Sequence[Any]) -> list[Call]:
        return self._learn("values")


class Numbered(NoTexts):
    """Texts that tell the updates apart."""

    def __init__(self) -> None:
        super().__init__(num_ranks=1)
        self.taken = 0

    def next(self) -> Sequence[Any]:
        self.taken += 1
        return (self.taken,)


class InMemory:
    """Checkpoints after every few steps, without files; `StepCheckpoints` as the loop sees it."""

    def __init__(self, run: HealedRun, every: int) -> None:
        self._run = run
        self._every = every
        self._saved: dict[Path, dict[str, Learnt]] = {}
        self.newest: tuple[int, Path] | None = None

    def poll(self) -> None: ...

    def give_up_writing(self) -> None: ...

    def is_due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def save(self, step: int, state: dict[str, Any]) -> None:
        folder = Path(f"step_{step:06}")
        calls = [call for role in self._run.ranks for call in role.save_checkpoint(folder)]
        self._run.waiter.results(calls, phase="checkpoint", timeout_s=60.0)
        self._saved[folder] = {role.name.role: role.learnt for role in self._run.ranks}
        self.newest = (step, folder)

    def load_roles(self, folder: Path, names: Collection[str]) -> None:
        for role in self._run.ranks:
            assert role.name.role in names
            role.learnt = self._saved[folder][role.name.role]


class HealedRun(FleetRun):
    """A run of the real loop in which learner and critic are healed; implements `Restarts`."""

    def __init__(
        self,
        folder: Path,
        *,
        max_restarts: int = 3,
        snapshot_every: int = 1,
        checkpoint_every: int = 0,
        averages_reference: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(folder, max_restarts=max_restarts, **settings)
        self.learner: Any = MortalLearner("learner", self.engines)
        self.critic = MortalCritic("critic", self.engines)
        self.ranks: tuple[MortalRank, ...] = (self.learner, self.critic)
        self.transport._source = self.publisher._source = self.learner
        self.texts = Numbered()
        saved: Any = InMemory(self, checkpoint_every)
        self.saver = RunCheckpoints(saved, texts=self.texts, evaluator=NoEvaluation())
        self.num_starts = 0
        self._is_there = True
        self.accounts = RecoveryAccounts(folder=folder, say=self.said.append)
        self.fleet._accounts = self.accounts
        self.trained = TrainedRoles(
            {"learner": self.learner, "critic": self.critic},
            self,
            self.waiter,
            settings=HealingSettings(
                max_restarts=max_restarts,
                snapshot_every=snapshot_every,
                restore_s=60.0,
                averages_reference=averages_reference,
            ),
            accounts=self.accounts,
            clock=lambda: self.waiter.now,
        )
        self.waiter.tend(LossKeepers([self.fleet, self.trained]))

    @property
    def names(self) -> Collection[MemberName]:
        return [rank.name for rank in self.ranks] if self._is_there else []

    def end(self) -> dict[MemberName, str]:
        assert self._is_there, "ended twice"
        names = self.names
        self._is_there = False
        return dict.fromkeys(names, "a test")

    def start(self) -> None:
        self.num_starts += 1
        for rank in self.ranks:
            rank.start_again()
        self._is_there = True
        calls = [self.engines.call(f"{rank.name.role} start", rank.name) for rank in self.ranks]
        self.waiter.results(calls, phase="start", timeout_s=600.0)

    def kill_rank(self, rank: int) -> Any:
        return lambda: self.engines.dead.add(self.ranks[rank].name)

    def stop_rank(self, rank: int) -> Any:
        return lambda: self.engines.hung.add(self.ranks[rank].name)
