"""Engines that die and hang when a test wants it, the waiter that notices, and a run with both.

Weights are the number of updates of the learner; the gate is the real one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts
from rlhf_ray.driver.fleet.engine_fleet import EngineFleet
from rlhf_ray.driver.fleet.parts import FleetSettings
from rlhf_ray.driver.fleet.transport import FleetTransport
from rlhf_ray.driver.healing.parts import NO_HEALING, NoHealing
from rlhf_ray.driver.healing.trained_roles import TrainedRoles
from rlhf_ray.driver.loop import Loop, train
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.driver.rollouts.waiting_groups import FOLDER, WaitingGroups
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.run_log import RunLog
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.driver.updates.reference_update import NoReferenceUpdate
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.driver.updates.token_scores import NoTokenScores, TokenScorers
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.losses import LossKeeper, Lost, MemberLost
from rlhf_ray.publish.base import POLICY, TransferSettings, WeightTransport
from rlhf_ray.publish.gate import Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.records import Coefficients, Prompt
from rlhf_ray.testing.fake_roles import FakeBuilder, FakeLearner
from rlhf_ray.testing.fake_waiter import InProcessPending, InProcessWaiter
from rlhf_ray.testing.fakes import FakePrompts, FakeRewards, done, make_group
from tests.unit.driver.checkpoint_fakes import run_settings

PROBE = Probe(sequences=((1, 2, 3), (4, 5)))
SILENCE_S, START_S = 20.0, 100.0


class FaultyEngines:
    """Engines by their places, and replacements for them.

    Attributes:
        weights, versions: of every engine that has ever been.
        drops: engines to which publishes are dropped without a word; `lies`: which then name the
            new version all the same.
        starts_after_s: time that a replacement needs.
        log: (method, engine) of every call.
    """

    def __init__(self, num_engines: int) -> None:
        self.names = [MemberName(role="generator", rank=rank) for rank in range(num_engines)]
        self.weights = dict.fromkeys(self.names, 0)
        self.versions = dict.fromkeys(self.names, 0)
        self.dead: set[MemberName] = set()
        self.hung: set[MemberName] = set()
        self.drops: set[MemberName] = set()
        self.lies: set[MemberName] = set()
        self.fenced: list[MemberName] = []
        self.starts_after_s = 20.0
        self.clock: Callable[[], float] = lambda: 0.0
        self.log: list[tuple[str, MemberName]] = []
        self.asked: Counter[str] = Counter()
        self.hooks: dict[tuple[str, int], Callable[[], None]] = {}
        self._starting: dict[MemberName, float] = {}

    # --- `FleetEngines`.

    @property
    def serving(self) -> Sequence[int]:
        return range(len(self.names))

    def ensure_serving(self) -> None: ...

    def issued_again(self, lost: Lost) -> None: ...

    def of(self, engines: Sequence[int]) -> Receivers:
        return Receivers(self, [self.names[engine] for engine in engines])

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        name = self.names[engine]
        group = make_group(prompt, sample_indices, version=self.versions[name])
        return self.call("generate", name, signal=(), payload=group)

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        return self.call("abort", self.names[engine])

    def ping(self, engine: int) -> Call:
        return self.call("ping", self.names[engine])

    def statistics(self) -> list[Call]:
        return self.of(self.serving).statistics()

    # --- `EngineReplacements`.

    def fence(self, lost: MemberName) -> str:
        assert lost not in self.fenced
        self.fenced.append(lost)
        self._starting.pop(lost, None)
        return "a test"

    def begin(self, name: MemberName) -> None:
        self._starting[name] = self.clock() + self.starts_after_s

    def started(self) -> list[MemberName]:
        ready = [name for name, at in self._starting.items() if at <= self.clock()]
        for name in ready:
            del self._starting[name]
            self.names[name.rank] = name
            # It has loaded the files of the first step.
            self.weights[name] = self.versions[name] = 0
        return ready

    # --- Faults.

    def call(self, method: str, name: MemberName, signal: Any = None, payload: Any = None) -> Call:
        self.asked[method] += 1
        self.log.append((method, name))
        if hook := self.hooks.pop((method, self.asked[method]), None):
            hook()
        return Call(member=name, signal=signal, payload=payload)


class Receivers:
    """Some engines, as they were when a publish began."""

    def __init__(self, engines: FaultyEngines, names: Sequence[MemberName]) -> None:
        self._engines = engines
        self.names = list(names)

    def statistics(self) -> list[Call]:
        zero = dict.fromkeys(("kv_cache_use_max", "queue_max", "preemptions"), 0.0)
        zero |= {"prefix_queries": 0.0, "prefix_hits": 0.0}
        return [self._engines.call("statistics", name, signal=zero) for name in self.names]

    def begin_update(self) -> list[Call]:
        return self._all("begin_update")

    def load_bucket(self, bucket: int) -> list[Call]:
        for name in self.names:
            if name not in self._engines.drops:
                self._engines.weights[name] = bucket
        return self._all("load_bucket")

    def finish_update(self, version: int) -> list[Call]:
        for name in self.names:
            if name not in self._engines.drops or name in self._engines.lies:
                self._engines.versions[name] = version
        return self._all("finish_update")

    def weight_version(self) -> list[Call]:
        engines = self._engines
        return [
            engines.call("weight_version", name, signal=engines.versions[name])
            for name in self.names
        ]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        engines = self._engines
        return [
            engines.call("score_sequences", name, signal=scores(engines.weights[name], sequences))
            for name in self.names
        ]

    def _all(self, method: str) -> list[Call]:
        return [self._engines.call(method, name) for name in self.names]


def scores(weights: int, sequences: Sequence[tuple[int, ...]]) -> list[list[float]]:
    """Log-probabilities that tell the weights apart."""
    return [[-float(token) - weights for token in row[1:]] for row in sequences]


class Noticing(InProcessWaiter):
    """A waiter to which dead engines are lost at once, and which has simulated time.

    It does what `cluster.runtime.supervisor.Supervisor` does over Ray.
    """

    def __init__(self, engines: FaultyEngines) -> None:
        super().__init__()
        self.now = 0.0
        self.lost: dict[MemberName, Lost] = {}
        self._keeper: LossKeeper | None = None
        self._engines = engines
        self._phase = ""
        engines.clock = lambda: self.now

    def tend(self, keeper: LossKeeper) -> None:
        self._keeper = keeper

    def sleep(self, seconds: float) -> None:
        self.now += max(1.0, seconds)

    def report_lost(self, member: MemberName, *, what: str, reason: str) -> None:
        if not isinstance(failure := self._loss(member, what, reason), MemberLost):
            raise failure

    def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
        self._phase = phase
        deadline = self.now + timeout_s
        self.look()
        while True:
            for call in calls:
                self.find_dead(call.member)
                if call.member in self.lost:
                    raise MemberLost(self.lost[call.member])
            late = [call for call in calls if call.member in self._engines.hung]
            if not late:
                return super().results(calls, phase=phase, timeout_s=timeout_s)
            self.pass_second()
            if self.now > deadline:
                raise self._loss(late[0].member, f"{late[0].member} did not answer", "late")

    def stream(
        self, call: Call, *, phase: str, timeout_s: float, others: Sequence[Call] = ()
    ) -> Iterator[Any]:
        for item in call.signal:
            self._phase = phase
            self.find_dead(call.member)
            if call.member in self._engines.hung:
                self.now += timeout_s
                raise self._loss(call.member, f"{call.member} did not answer", "late")
            if call.member in self.lost:
                raise MemberLost(self.lost[call.member])
            yield item

    def pending(self) -> FaultyPending:
        return FaultyPending(self, self._engines)

    def look(self) -> None:
        self.now += 0.5
        if self._keeper is not None:
            self._keeper.look()

    def pass_second(self) -> None:
        self.now += 1.0
        self.look()

    def find_dead(self, member: MemberName) -> None:
        if member in self._engines.dead and member not in self.lost:
            failure = self._loss(member, f"{member} died", "killed by a test")
            if not isinstance(failure, MemberLost):
                raise failure

    def set_phase(self, phase: str) -> None:
        self._phase = phase or self._phase

    def _loss(self, member: MemberName, what: str, reason: str) -> RunFailed:
        if member in self.lost:
            return MemberLost(self.lost[member])
        lost = Lost(member=member, what=what, reason=reason, phase=self._phase, step=self.step)
        if self._keeper is None or not self._keeper.replaces(member):
            return RunFailed(str(lost))
        if words := self._keeper.lose(lost):
            return RunFailed(f"{lost}. {words}")
        self.lost[member] = lost
        return MemberLost(lost)


class FaultyPending(InProcessPending):
    """All calls are done at once, but for those of engines that hang."""

    def __init__(self, waiter: Noticing, engines: FaultyEngines) -> None:
        super().__init__()
        self._waiter = waiter
        self._engines = engines

    def take_done(self, *, phase: str, timeout_s: float) -> list[tuple[Call, Any]]:
        self._waiter.set_phase(phase)
        assert self._calls, "a wait for nothing"
        deadline = self._waiter.now + timeout_s
        while not (taken := self.take_ready(phase=phase)):
            self._waiter.pass_second()
            if self._waiter.now > deadline:
                raise RunFailed(f"{next(iter(self._calls)).member} did not answer (phase {phase})")
        self._waiter.look()
        return taken

    def take_ready(self, *, phase: str) -> list[tuple[Call, Any]]:
        taken: list[tuple[Call, Any]] = []
        for call in list(self._calls):
            self._waiter.find_dead(call.member)
            lost = self._waiter.lost.get(call.member)
            if lost is None and call.member in self._engines.hung:
                continue
            self.discard(call)
            taken.append((call, call.signal if lost is None else lost))
        return taken


class Updated(FakeLearner):
    """A learner whose weights are the number of its updates."""

    def __init__(self) -> None:
        self.updates = 0

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        self.updates += 1
        return super().update(experiences, texts=texts, coefficients=coefficients)

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [done("learner", 0, signal=scores(self.updates, sequences))]

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        return done("learner", 0, signal=[-1, self.updates]), []


class Batches:
    """Takes what a run log would write: the prompts and versions of every step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.prompts: list[tuple[str, ...]] = []
        self.versions: list[set[int]] = []

    def write(self, step: int, batch: Any) -> None:
        self.prompts.append(tuple(summary.prompt_id for summary in batch.summaries))
        self.versions.append({summary.oldest_version for summary in batch.summaries})

    def flush(self) -> None: ...


class Written:
    """Metrics of every step; a progress display that shows nothing."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.rows.append(dict(metrics))

    def phase(self, name: str) -> None: ...

    def step_done(self, step: int, metrics: dict[str, float]) -> None: ...


class FleetRun:
    """A run of the real loop, fleet, publisher and gate over such engines.

    Args:
        every_steps: steps between two checkpoints; 0 writes none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_engines: int = 2,
        num_steps: int = 5,
        max_restarts: int = 3,
        min_engines: int = 0,
        max_staleness: int = 0,
        every_steps: int = 0,
        wrap: Callable[[WeightTransport], Any] = lambda transport: transport,
    ) -> None:
        self.num_steps = num_steps
        self.engines = FaultyEngines(num_engines)
        self.waiter = Noticing(self.engines)
        self.learner = Updated()
        self.said: list[str] = []
        self.folder = folder
        self.fleet = EngineFleet(
            self.engines,
            self.engines,
            self.waiter,
            settings=FleetSettings(
                max_restarts=max_restarts,
                min_engines=min_engines,
                silence_s=SILENCE_S,
                start_s=START_S,
            ),
            accounts=RecoveryAccounts(folder=folder, say=self.said.append),
            clock=lambda: self.waiter.now,
            sleep=self.waiter.sleep,
        )
        self.waiter.tend(self.fleet)
        settings = TransferSettings(bucket_bytes=1, phase="publish", timeout_s=60.0)
        self.transport = FleetTransport(
            wrap(ObjectStoreTransport(self.waiter, settings)), self.fleet, self.learner
        )
        self.publisher = Publisher(
            source=self.learner,
            receivers=self.fleet,
            transport=self.transport,
            turns=DedicatedDevices(),
            waiter=self.waiter,
            probe=PROBE,
            trials=self.fleet,
            settings=PublishSettings(probe_every=2, probe_tolerance=1e-3, timeout_s=60.0),
        )
        self.fleet.restore_with(lambda: self.transport.restore(self.publisher.publish_again))
        self.batches, self.written = Batches(), Written()
        # For runs with roles that train and are healed; see `tests.unit.driver.healing`.
        self.critic: Any = None
        self.texts: Any = NoTexts(num_ranks=1)
        self.trained: TrainedRoles | NoHealing = NO_HEALING
        self.pipeline = RolloutPipeline(
            prompts=FakePrompts(),
            generators=self.fleet,
            rewards=FakeRewards(),
            waiter=self.waiter,
            failure_budget=FailureBudget(0.0),
            settings=PipelineSettings(
                num_steps=num_steps,
                prompts_per_step=6,
                samples_per_prompt=2,
                max_staleness=max_staleness,
                generate_timeout_s=60.0,
            ),
        )
        kept = run_settings()
        groups = WaitingGroups(FakeBuilder(), self.waiter, settings=kept, timeout_s=60.0)
        checkpoints = StepCheckpoints(
            Checkpoints(folder, keep_last=9),
            roles={FOLDER: groups},
            waiter=self.waiter,
            every_steps=every_steps,
            timeout_s=60.0,
            identity=kept.identity,
            settings=kept.in_checkpoint(),
        )
        self.saver = RunCheckpoints(
            checkpoints, texts=NoTexts(num_ranks=1), evaluator=NoEvaluation(), groups=groups
        )
        self.state = LoopState(step=0, controllers=Controllers.start(AlgorithmConfig()))

    def resume(self, step: int) -> FleetRun:
        """Go on from the checkpoint of a step; the learner has its weights."""
        folder = self.folder / "checkpoints" / f"step_{step:06d}"
        self.state = self.saver.load(folder, self.pipeline, self.said.append)
        self.learner.updates = step
        return self

    def run(self) -> FleetRun:
        self.transport.open(self.learner, self.fleet.muster(takes_new=True))
        if self.state.step:
            self.publisher.publish(self.state.step, is_first=True)
        else:
            self.publisher.check_loaded(0)
        trainer = Trainer(
            builder=FakeBuilder(),
            learner=self.learner,
            critic=self.critic or NoCritic(),
            texts=self.texts,
            waiter=self.waiter,
            note=self.trained.note,
            settings=TrainerSettings(
                build_timeout_s=60.0, update_timeout_s=60.0, critic_warmup_steps=0
            ),
        )
        saver = self.saver
        if isinstance(self.trained, TrainedRoles):
            forget = [self.transport.source_restarted, saver.give_up_writing]
            self.trained.attach(replay=trainer.replay, saved=saver, forget=forget)
        loop = Loop(
            pipeline=self.pipeline,
            token_scorers=TokenScorers(
                reference=NoTokenScores(),
                critic=self.critic or NoTokenScores(),
                old=NoTokenScores() if self.critic is None else self.learner,
                untrained=self.learner,
                num_untrained_steps=0,
                waiter=self.waiter,
                timeout_s=60.0,
            ),
            trainer=trainer,
            publisher=self.publisher,
            reference_updater=NoReferenceUpdate(),
            devices=DedicatedDevices(),
            evaluator=NoEvaluation(),
            waiter=self.waiter,
            log=RunLog(metrics=self.written, progress=self.written, rollouts=self.batches),
            checkpoints=saver,
            recovery=self.fleet,
            trained=self.trained,
        )
        train(loop, self.state, num_steps=self.num_steps)
        return self

    def on(self, method: str, number: int, fault: Callable[[], None]) -> None:
        """Do this when a method is called for the `number`-th time, before it answers."""
        self.engines.hooks[method, number] = fault

    def kill(self, place: int) -> Callable[[], None]:
        return lambda: self.engines.dead.add(self.engines.names[place])

    def stop(self, place: int) -> Callable[[], None]:
        return lambda: self.engines.hung.add(self.engines.names[place])
