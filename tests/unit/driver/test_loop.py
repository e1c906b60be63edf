"""The loop over fakes: the order of its stages, and its state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.algorithms.rewards.task_rewards import RewardScale
from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.loop import Loop, train
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.run_log import NoRollouts, RunLog
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.device_sharing import ColocatedDevices, DedicatedDevices, DeviceSharing
from rlhf_ray.driver.updates.reference_update import (
    NoReferenceUpdate,
    PeriodicReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.driver.updates.token_scores import NoTokenScores, TokenScorers
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.publish.base import POLICY, LearnerPart, TransferSettings
from rlhf_ray.publish.gate import FidelityError, Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.records import Coefficients
from rlhf_ray.testing.fake_roles import FakeBuilder, FakeLearner, FakeReference
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakePrompts, FakeRewards, done

PROBE = Probe(sequences=((1, 2, 3), (4, 5)))
LOGPROBS = [[-1.0, -2.0], [-0.5]]


def opened_transport(
    policy: FakeLearner,
    receivers: FakeGenerators | FakeReference,
    waiter: InProcessWaiter,
    phase: str = "publish",
) -> ObjectStoreTransport:
    settings = TransferSettings(bucket_bytes=1, phase=phase, timeout_s=1.0)
    transport = ObjectStoreTransport(waiter, settings)
    transport.open(policy, receivers)
    return transport


class Receivers(FakeGenerators):
    """Engines that log their calls; `corrupt` shifts the log-probabilities of engine 1."""

    def __init__(self, log: list[str], num_engines: int = 2) -> None:
        super().__init__(num_engines)
        self.events = log
        self.corrupt = 0.0
        self.lost_version = False

    def generate(
        self, engine: int, prompt: Any, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        self.events.append("generate")
        return super().generate(engine, prompt, sample_indices, together=together)

    def weight_version(self) -> list[Call]:
        version = self.version - 1 if self.lost_version else self.version
        return [done("generator", i, signal=version) for i in range(len(self.names))]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        assert tuple(sequences) == PROBE.sequences
        shifts = [0.0, self.corrupt]
        return [
            done("generator", i, signal=[[x + shift for x in row] for row in LOGPROBS])
            for i, shift in enumerate(shifts)
        ]


class Policy(FakeLearner):
    """A learner that logs its calls."""

    def __init__(self, log: list[str]) -> None:
        self.events = log
        self.coefficients: list[float] = []
        self.scales: list[dict[str, RewardScale]] = []

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        self.events.append("update")
        self.coefficients.append(coefficients.kl)
        self.scales.append(dict(coefficients.reward_scales))
        return [done("learner", 0, signal={"policy/loss": 0.5})]

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        self.events.append("score")
        return [done("learner", 0, payload="old")]

    def weight_shapes(self) -> Call:
        return done("learner", 0, signal={"w": (3,)})

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        return done("learner", 0, signal=["a", "b"]), []

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return [done("learner", 0, signal=LOGPROBS)]

    def offload_states(self, part: LearnerPart) -> list[Call]:
        self.events.append(f"offload {part.name.lower()}")
        return []

    def reload_states(self) -> list[Call]:
        self.events.append("reload")
        return []


class Following(FakeReference):
    """A reference that logs its calls."""

    def __init__(self, log: list[str]) -> None:
        self.events = log

    def check_weights(self, shapes: Any) -> list[Call]:
        return self._event(f"check {shapes}")

    def begin_update(self) -> list[Call]:
        return self._event("reference begins")

    def load_bucket(self, bucket: Any) -> list[Call]:
        return self._event(f"reference loads {bucket}")

    def finish_update(self, version: int) -> list[Call]:
        return self._event("reference finishes")

    def _event(self, name: str) -> list[Call]:
        self.events.append(name)
        return [done("reference", 0)]


class Experience(FakeBuilder):
    """A builder that reports a KL of 12 nats."""

    def build(self, *, step: int, coefficients: Coefficients, **parts: Any) -> Call:
        return done("builder", 0, signal={"kl/reference": 12.0}, payload=(("e",), ()))


class Notes:
    """Metrics writer and progress that remember steps and phases."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.shown: list[int] = []
        self.phases: list[str] = []

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self.steps.append((step, metrics))

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def step_done(self, step: int, metrics: dict[str, float]) -> None:
        self.shown.append(step)


class Saved:
    """Checkpoints after every step, without files."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.is_on = True

    def poll(self) -> None: ...

    def is_due(self, step: int) -> bool:
        return self.is_on

    def save(self, step: int, state: dict[str, Any]) -> None:
        assert set(state) == {"adaptive", "pipeline", "groups", "texts", "evaluation"}
        self.steps.append(step)


class Held(NoEvaluation):
    """An evaluation after every `every` steps."""

    def __init__(self, log: list[str], every: int) -> None:
        self._log = log
        self._every = every

    def is_due(self, step: int) -> bool:
        return step % self._every == 0

    def evaluate(self, step: int) -> dict[str, float]:
        self._log.append("evaluate")
        return {"evaluation/of": float(step)}


class World:
    """A loop over fakes with all parts at hand."""

    def __init__(
        self,
        *,
        num_steps: int = 1,
        colocated: bool = False,
        critic_warmup_steps: int = 0,
        reference_every: int = 0,
        evaluates_every: int = 0,
        max_staleness: int = 0,
        waiter: InProcessWaiter | None = None,
    ) -> None:
        self._num_steps = num_steps
        self.log: list[str] = []
        self.waiter = waiter or InProcessWaiter()
        self.engines, self.policy = Receivers(self.log), Policy(self.log)
        self.rewards = FakeRewards()
        self.notes, self.saved = Notes(), Saved()
        self.reference_updater: PeriodicReferenceUpdater | NoReferenceUpdate = NoReferenceUpdate()
        if reference_every:
            reference = Following(self.log)
            self.reference_updater = PeriodicReferenceUpdater(
                policy=self.policy,
                reference=reference,
                transport=opened_transport(self.policy, reference, self.waiter, "refresh"),
                waiter=self.waiter,
                settings=ReferenceUpdateSettings(every_steps=reference_every, timeout_s=1.0),
            )
        devices: DeviceSharing = DedicatedDevices()
        if colocated:
            devices = ColocatedDevices(
                engines=self.engines, trained=(self.policy,), waiter=self.waiter, timeout_s=1.0
            )
        self.loop = Loop(
            pipeline=RolloutPipeline(
                prompts=FakePrompts(),
                generators=self.engines,
                rewards=self.rewards,
                waiter=self.waiter,
                failure_budget=FailureBudget(0.1),
                settings=PipelineSettings(
                    num_steps=num_steps,
                    prompts_per_step=1,
                    samples_per_prompt=2,
                    max_staleness=max_staleness,
                    generate_timeout_s=1.0,
                ),
            ),
            token_scorers=TokenScorers(
                reference=NoTokenScores(),
                critic=NoTokenScores(),
                old=NoTokenScores(),
                untrained=self.policy,
                num_untrained_steps=critic_warmup_steps,
                waiter=self.waiter,
                timeout_s=1.0,
            ),
            trainer=Trainer(
                builder=Experience(),
                learner=self.policy,
                critic=NoCritic(),
                texts=NoTexts(num_ranks=1),
                waiter=self.waiter,
                settings=TrainerSettings(
                    build_timeout_s=1.0,
                    update_timeout_s=1.0,
                    critic_warmup_steps=critic_warmup_steps,
                ),
            ),
            publisher=Publisher(
                source=self.policy,
                receivers=self.engines,
                transport=opened_transport(self.policy, self.engines, self.waiter),
                turns=devices,
                waiter=self.waiter,
                probe=PROBE,
                settings=PublishSettings(probe_every=1, probe_tolerance=1e-3, timeout_s=1.0),
            ),
            reference_updater=self.reference_updater,
            devices=devices,
            evaluator=Held(self.log, evaluates_every) if evaluates_every else NoEvaluation(),
            waiter=self.waiter,
            log=RunLog(metrics=self.notes, progress=self.notes, rollouts=NoRollouts()),
            checkpoints=RunCheckpoints(
                self.saved, texts=NoTexts(num_ranks=1), evaluator=NoEvaluation()
            ),
        )

    def train(self, **algorithm: Any) -> LoopState:
        settings = AlgorithmConfig(kl_coefficient=0.1, **algorithm)
        state = LoopState(step=0, controllers=Controllers.start(settings))
        train(self.loop, state, num_steps=self._num_steps)
        return state


STEP = ["generate", "update", "begin_update", "load a", "load b"]


def test_evaluations_use_the_new_weights():
    world = World(num_steps=3, evaluates_every=2)
    world.train()
    step = [*STEP, "finish_update"]
    assert world.log == [*step, *step, "evaluate", *step]
    evaluated = [metrics.get("evaluation/of") for _, metrics in world.notes.steps]
    assert evaluated == [None, 2.0, None]
    timed = ["time/evaluate_s" in metrics for _, metrics in world.notes.steps]
    assert timed == [False, True, False]


def test_one_step_in_order():
    world = World()
    world.train()
    assert world.log == [*STEP, "finish_update"]
    ((step, metrics),) = world.notes.steps
    assert step == 1
    assert world.saved.steps == [1]
    assert world.notes.shown == [1]
    assert metrics["publish/version"] == 1.0
    assert metrics["publish/probe_gap_max"] == 0.0
    assert metrics["policy/loss"] == 0.5
    assert metrics["reward/mean"] == 0.5
    assert set(metrics) >= {f"time/{n}_s" for n in ("step", "generate", "score", "update")}
    assert world.notes.phases == ["generate", "reference", "update", "publish", "checkpoint"]


def test_a_checkpoint_that_is_not_due_is_no_phase():
    world = World()
    world.saved.is_on = False
    world.train()
    assert world.notes.phases == ["generate", "reference", "update", "publish"]
    assert world.saved.steps == []


def test_colocated_roles_take_turns():
    world = World(colocated=True)
    world.train()
    assert world.log == [
        *["generate", "sleep", "reload", "update"],
        *["offload states", "wake_up weights"],
        *["begin_update", "load a", "load b", "finish_update"],
        *["offload weights", "wake_up kv_cache"],
    ]


UPDATE = ["begins", "loads a", "loads b", "finishes"]


def test_the_reference_is_updated_at_its_interval():
    world = World(num_steps=5, reference_every=2)
    world.train()
    moves = [f"reference {event}" for event in UPDATE]
    step = [*STEP, "finish_update"]
    moving = [*STEP[:2], *moves, *STEP[2:], "finish_update"]
    # Not after the last step alone, and never before the policy has moved.
    assert world.log == [*step, *moving, *step, *moving, *step]
    versions = [metrics["reference/version"] for _, metrics in world.notes.steps]
    assert versions == [0.0, 2.0, 2.0, 4.0, 4.0]
    assert world.waiter.phases.count("refresh") > 0


def test_a_resumed_run_updates_the_reference_in_the_same_steps():
    world = World(num_steps=4, reference_every=3)
    world.engines.version = 2
    state = LoopState(step=2, controllers=Controllers.start(AlgorithmConfig()))
    train(world.loop, state, num_steps=4)
    versions = [metrics["reference/version"] for _, metrics in world.notes.steps]
    assert versions == [3.0, 3.0]


def test_a_reference_that_is_never_updated_has_no_version():
    world = World()
    world.train()
    assert "reference/version" not in world.notes.steps[0][1]


def test_weight_shapes_are_checked_before_the_first_step():
    world = World(reference_every=1)
    world.reference_updater.check()
    assert world.log == ["check {'w': (3,)}"]


def test_colocated_roles_update_the_reference_before_the_learner_is_offloaded():
    world = World(colocated=True, reference_every=1)
    world.train()
    assert world.log.index("reference begins") > world.log.index("update")
    assert world.log.index("offload states") > world.log.index("reference finishes")


def test_the_next_batch_is_started_after_the_publish_and_sampled_by_the_new_weights():
    world = World(num_steps=3)
    world.train()
    staleness = [metrics["rollout/staleness_max"] for _, metrics in world.notes.steps]
    assert staleness == [0.0, 0.0, 0.0]
    assert world.log == [*STEP, "finish_update"] * 3


def test_later_batches_are_scored_while_the_driver_waits_for_an_update():
    scored_at_update: list[int] = []

    class Watching(InProcessWaiter):
        def results(self, calls: Sequence[Call], *, phase: str, timeout_s: float) -> list[Any]:
            values = super().results(calls, phase=phase, timeout_s=timeout_s)
            if phase == "update":
                scored_at_update.append(len(world.rewards.scored))
            return values

    world = World(num_steps=4, max_staleness=1, waiter=Watching())
    world.train()
    # One batch more than has been handed out; there are four in all.
    assert scored_at_update == [2, 3, 4, 4]


def test_only_the_critic_learns_in_its_warm_up():
    world = World(num_steps=3, critic_warmup_steps=2)
    world.train()
    assert world.log.count("update") == 1
    # The gap between engine and learner is measured in every step.
    assert world.log.count("score") == 2
    assert world.log.index("update") > max(i for i, e in enumerate(world.log) if e == "score")


def test_the_coefficient_follows_the_controller():
    world = World(num_steps=3)
    state = world.train(kl_controller="adaptive", kl_target=6.0, kl_horizon=10)
    # 12 nats against 6: the error is clipped to 0.2, and 2 samples of 10 move it by 4 %.
    expected = [0.1, 0.104, 0.104 * 1.04]
    assert world.policy.coefficients == pytest.approx(expected)
    assert state.controllers.kl.coefficient == pytest.approx(expected[-1] * 1.04)


def test_rewards_are_scaled_by_moments_that_include_their_batch():
    world = World(num_steps=2)
    world.train(advantage="returns", reward_normalization="running")
    # Every group of the fakes has the rewards 0 and 1.
    (task,) = world.policy.scales[0]
    deviations = [scales[task].deviation for scales in world.policy.scales]
    assert deviations == pytest.approx([math.sqrt(1 / 2), math.sqrt(1 / 3)])
    for number, (_, metrics) in enumerate(world.notes.steps):
        assert metrics[f"reward/shift/{task}"] == 0.5
        assert metrics[f"reward/scale/{task}"] == deviations[number]
    plain = World(num_steps=1)
    plain.train()
    assert plain.policy.scales == [{}]
    assert not [name for name in plain.notes.steps[0][1] if name.startswith("reward/scale")]


@pytest.mark.parametrize("gap", [2e-3, -2e-3, math.nan])
def test_an_engine_that_differs_ends_the_run(gap):
    world = World()
    world.engines.corrupt = gap
    with pytest.raises(FidelityError, match="engine 1"):
        world.train()
    assert isinstance(FidelityError("x"), RunFailed)
    assert not world.notes.steps


def test_an_engine_that_kept_its_old_version_ends_the_run():
    world = World()
    world.engines.lost_version = True
    with pytest.raises(FidelityError, match="version 0, not 1"):
        world.train()
