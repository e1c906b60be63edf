"""Turns on shared devices, over fakes that count the bytes of every part on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlhf_ray.calls import Call
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.updates.device_sharing import ColocatedDevices
from rlhf_ray.publish.base import AVERAGE, POLICY, EnginePart, LearnerPart, TransferSettings
from rlhf_ray.publish.gate import FidelityError, Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.records import Coefficients
from rlhf_ray.testing.fake_roles import FakeLearner
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, done, make_prompt

PROBE = Probe(sequences=((1, 2, 3),))
GB = 1
# A 7B model on one of four GPUs: bfloat16 weights, float32 states and gradients at ZeRO-3.
STATES, LEARNER_WEIGHTS = 25 * GB, 4 * GB
ENGINE_WEIGHTS, CACHE = 15 * GB, 50 * GB


class Device:
    """A device that knows what lies on it, and the most that has lain on it in each phase."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}
        self.phase = "start"
        self.peaks: dict[str, int] = {}

    def put(self, **parts: int) -> None:
        assert not parts.keys() & self.parts.keys(), f"{parts} twice on the device"
        self.parts |= parts
        peak = max(self.peaks.get(self.phase, 0), sum(self.parts.values()))
        self.peaks[self.phase] = peak

    def take(self, *names: str) -> None:
        for name in names:
            self.parts.pop(name, None)

    def needs(self, *names: str) -> None:
        missing = set(names) - self.parts.keys()
        assert not missing, f"{self.phase}: {sorted(missing)} not on the device"


class Engines(FakeGenerators):
    """Engines that forget their weights when they sleep."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device
        device.put(engine_weights=ENGINE_WEIGHTS, cache=CACHE)
        self.has_weights = True
        self.corrupt = False

    def sleep(self) -> list[Call]:
        self._device.take("engine_weights", "cache")
        self.has_weights = False
        return super().sleep()

    def wake_up(self, part: EnginePart) -> list[Call]:
        if part is EnginePart.WEIGHTS:
            self._device.put(engine_weights=ENGINE_WEIGHTS)
        else:
            self._device.needs("engine_weights")
            self._device.put(cache=CACHE)
        return super().wake_up(part)

    def load_bucket(self, bucket: Any) -> list[Call]:
        self._device.needs("engine_weights", "learner_weights")
        return super().load_bucket(bucket)

    def finish_update(self, version: int) -> list[Call]:
        self.has_weights = True
        return super().finish_update(version)

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        self.check_awake()
        score = -9.0 if self.corrupt else -1.0
        return [done("generator", 0, signal=[[score] * (len(row) - 1) for row in sequences])]

    def generate(
        self, engine: int, prompt: Any, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        self.check_awake()
        return super().generate(engine, prompt, sample_indices, together=together)

    def check_awake(self) -> None:
        self._device.needs("engine_weights", "cache")
        assert self.has_weights, "the engine has forgotten its weights"


class Learner(FakeLearner):
    """A learner whose states and weights leave the device by themselves."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.fails_after: str | None = None
        device.put(states=STATES, learner_weights=LEARNER_WEIGHTS)

    def offload_states(self, part: LearnerPart) -> list[Call]:
        if part is LearnerPart.STATES:
            self._device.take("states")
        else:
            assert "states" not in self._device.parts, "weights leave last"
            self._device.take("learner_weights")
        return []

    def reload_states(self) -> list[Call]:
        for name, size in (("states", STATES), ("learner_weights", LEARNER_WEIGHTS)):
            if name not in self._device.parts:
                self._device.put(**{name: size})
        return []

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]:
        self._device.needs("states", "learner_weights")
        return super().update(experiences, texts=texts, coefficients=coefficients)

    def weight_buckets(self, bucket_bytes: int, *, what: str = POLICY) -> tuple[Call, list[Call]]:
        self._device.needs("learner_weights")
        return done("learner", 0, signal=["a", "b"]), []

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        self._device.needs("learner_weights")
        return [done("learner", 0, signal=[[-1.0] * (len(row) - 1) for row in sequences])]

    def save_checkpoint(self, folder: Any) -> list[Call]:
        return super().save_checkpoint(folder)


class World:
    """One device, engines that started first and sleep, and a learner that started next."""

    def __init__(self) -> None:
        self.device = Device()
        self.engines = Engines(self.device)
        self.engines.sleep()
        self.learner = Learner(self.device)
        waiter = InProcessWaiter()
        self.devices = ColocatedDevices(
            engines=self.engines, trained=(self.learner,), waiter=waiter, timeout_s=1.0
        )
        self.transport = ObjectStoreTransport(
            waiter, TransferSettings(bucket_bytes=1, phase="publish", timeout_s=1.0)
        )
        self.transport.open(self.learner, self.engines)
        self.publisher = Publisher(
            source=self.learner,
            receivers=self.engines,
            transport=self.transport,
            turns=self.devices,
            waiter=waiter,
            probe=PROBE,
            settings=PublishSettings(probe_every=2, probe_tolerance=1e-3, timeout_s=1.0),
        )

    def start(self, version: int = 0) -> None:
        self.device.phase = "first publish"
        self.publisher.publish(version, is_first=True)

    def step(self, version: int) -> None:
        self.device.phase = "generate"
        self.engines.generate(0, make_prompt(0), (0,))
        self.device.phase = "train"
        self.devices.begin_training()
        self.learner.update([], texts=[], coefficients=Coefficients(kl=0.0, entropy=0.0))
        self.device.phase = "publish"
        self.publisher.publish(version)


ALL_OF_LEARNER = STATES + LEARNER_WEIGHTS
ALL_OF_ENGINE = ENGINE_WEIGHTS + CACHE


@pytest.fixture
def world() -> World:
    started = World()
    assert started.device.peaks == {"start": ALL_OF_ENGINE}, "one role after the other"
    assert started.device.parts.keys() == {"states", "learner_weights"}
    return started


def test_no_phase_of_a_run_holds_more_than_one_role_and_the_weights_of_both(world):
    world.start()
    for version in (1, 2, 3):
        world.step(version)
        assert world.device.parts.keys() == {"engine_weights", "cache"}
    assert world.engines.version == 3
    assert world.device.peaks == {
        "start": ALL_OF_ENGINE,
        "train": ALL_OF_LEARNER,
        # First the weights of both, then all of the engine.
        "first publish": ALL_OF_ENGINE,
        "publish": ALL_OF_ENGINE,
    }


def test_weights_move_while_the_learner_has_no_states_and_the_engine_no_cache(world):
    held: list[set[str]] = []
    load = world.engines.load_bucket
    world.engines.load_bucket = lambda bucket: held.append({*world.device.parts}) or load(bucket)
    world.start()
    assert held == [{"engine_weights", "learner_weights"}] * 2


def test_a_resumed_run_loads_its_checkpoint_before_engines_wake(world):
    world.device.needs("states", "learner_weights")
    world.start(version=7)
    assert world.engines.version == 7
    world.engines.check_awake()


def test_an_evaluation_of_the_ema_takes_the_same_turns(world):
    world.start()
    world.device.phase = "evaluate"
    world.devices.begin_training()
    world.devices.begin_publishing()
    world.transport.send(0, what=AVERAGE)
    world.devices.begin_generating()
    world.engines.check_awake()
    assert world.device.peaks["evaluate"] == ALL_OF_ENGINE


def test_engines_that_made_room_for_saving_get_their_weights_again(world):
    world.start()
    world.step(1)
    world.device.phase = "save the best"
    world.devices.begin_training()
    assert not world.engines.has_weights
    world.device.needs("learner_weights")
    world.publisher.publish_again()
    world.engines.check_awake()
    assert world.engines.version == 1
    assert world.device.peaks["save the best"] == ALL_OF_ENGINE


def test_after_a_failed_publish_nothing_generates(world):
    world.start()
    world.device.phase = "train"
    world.devices.begin_training()

    def lose(bucket: Any) -> list[Call]:
        raise RunFailed("generator_0 died")

    world.engines.load_bucket = lose
    world.device.phase = "failed publish"
    with pytest.raises(RunFailed, match="died"):
        world.publisher.publish(1)
    assert world.device.parts.keys() == {"engine_weights", "learner_weights"}
    with pytest.raises(AssertionError, match="cache"):
        world.engines.generate(0, make_prompt(0), (0,))
    assert world.device.peaks["failed publish"] == ENGINE_WEIGHTS + ALL_OF_LEARNER - STATES


def test_a_wrong_engine_is_found_although_the_learner_has_left(world):
    world.engines.corrupt = True
    with pytest.raises(FidelityError, match="engine 0 differs"):
        world.start()


def test_at_the_end_the_learner_is_back_to_save_the_model(world):
    world.start()
    world.step(1)
    world.device.phase = "end"
    world.devices.begin_training()
    assert world.device.parts.keys() == {"states", "learner_weights"}
    assert world.device.peaks["end"] == ALL_OF_LEARNER
