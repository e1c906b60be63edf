"""Real engines that are lost in a publish of a real learner: the others get it, a new one follows.

The learner has the weights of another seed than the files of the engines: an engine that has
missed the publish computes something else, and the gate sees it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest

from rlhf_ray.calls import MemberName
from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.engines.replacement import Replacements
from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.roles.generator import EngineSettings, GeneratorActor, engines_role
from rlhf_ray.cluster.roles.learner import LearnerGroup
from rlhf_ray.cluster.runtime.supervisor import Member
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.driver.fleet.accounts import RecoveryAccounts, num_lost
from rlhf_ray.driver.fleet.engine_fleet import EngineFleet
from rlhf_ray.driver.fleet.parts import FleetSettings
from rlhf_ray.driver.fleet.transport import FleetTransport
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.publish.base import POLICY, TransferSettings
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.publish.transports import COLLECTIVE, IPC, OBJECT_STORE, TRANSPORTS
from rlhf_ray.testing.tiny import tiny_random
from tests.ray.test_transports import LARGER, PROBE, START_S, Actors, learner

pytestmark = [pytest.mark.stack, pytest.mark.nightly, pytest.mark.timeout(1500)]
PUBLISH_S, SILENCE_S = 40.0, 30.0


class Dropping:
    """A transport that sends only to first incarnations, and says nothing."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def open(self, source: Any, receivers: GeneratorGroup) -> None:
        first = [member for member in receivers._members if member.name.incarnation == 1]
        self._inner.open(source, GeneratorGroup(first))

    def send(self, version: int, *, what: str = POLICY) -> None:
        self._inner.send(version, what=what)

    def close(self) -> None:
        self._inner.close()


class RealFleet:
    """Two engines and what a run puts around them."""

    def __init__(
        self,
        folder: Path,
        kind: str,
        source: LearnerGroup,
        actors: Actors,
        settings: EngineSettings,
        wrap: Callable[[Any], Any],
    ) -> None:
        self.folder, self.actors = folder, actors
        self.waiter = actors.supervisor
        for member in source._members:
            self.waiter.add(member)
        self.group = GeneratorGroup(actors.members)
        plan = RolePlan(
            role="generator", num_actors=2, num_cpus=0.05, num_gpus=0, bundle_indices=(0, 1)
        )
        self.fleet = EngineFleet(
            self.group,
            Replacements(
                engines_role("generator", settings, first_index=0),
                ResourcePlan(roles=(plan,), bundles=({"CPU": 0.05},) * 2, strategy="PACK"),
                actors._launcher,
                self.waiter,
                on_started=self.group.join,
                timeout_s=START_S,
            ),
            self.waiter,
            settings=FleetSettings(
                max_restarts=3, min_engines=0, silence_s=SILENCE_S, start_s=START_S
            ),
            accounts=RecoveryAccounts(folder=folder, say=print),
        )
        self.waiter.tend(self.fleet)
        transfer = TransferSettings(bucket_bytes=4_000_000, phase="publish", timeout_s=PUBLISH_S)
        inner = wrap(TRANSPORTS[kind].make(self.waiter, transfer))
        self.transport = FleetTransport(inner, self.fleet, source)
        self.transport.open(source, self.fleet.muster(takes_new=True))
        self.publisher = Publisher(
            source=source,
            receivers=self.fleet,
            transport=self.transport,
            turns=DedicatedDevices(),
            waiter=self.waiter,
            probe=PROBE,
            trials=self.fleet,
            settings=PublishSettings(probe_every=1, probe_tolerance=1e-4, timeout_s=60.0),
        )

    def published(self, version: int) -> tuple[int, ...]:
        """Publish; the engines that serve then."""
        assert self.publisher.publish(version)["publish/probe_gap_max"] < 1e-4
        return tuple(self.fleet.serving)

    def wait_for_replacement(self, incarnation: int) -> None:
        """Until the actor in place 1 has started; it is not sent anything."""
        name = MemberName(role="generator", rank=1, incarnation=incarnation)
        deadline = time.monotonic() + START_S
        while self.group.names[1] != name:
            self.fleet.look()
            assert time.monotonic() < deadline
            time.sleep(0.2)


@contextmanager
def fleet_of(
    folder: Path, kind: str, wrap: Callable[[Any], Any] = lambda transport: transport
) -> Iterator[RealFleet]:
    for seed in (0, 1):
        tiny_random(folder / f"model{seed}", seed=seed, sizes=LARGER)
    settings = EngineSettings(
        generation=GenerationConfig(
            dtype="float32",
            num_engines=2,
            max_response_tokens=24,
            max_num_seqs=16,
            max_num_batched_tokens=2048,
            kv_cache_gib=0.25,
            cpu_threads=1,
        ),
        model=ModelConfig(path=str(folder / "model0")),
        max_sequence_tokens=200,
        greedy_from=1000,
        request_timeout_s=120.0,
    )
    role = engines_role("generator", settings, first_index=0)
    actors = Actors("generator", GeneratorActor, [role.settings(rank) for rank in range(2)])
    try:
        actors.start(((),), ((),))
        with learner(folder, num_ranks=2, zero_stage=3) as source:
            yield RealFleet(folder, kind, source, actors, settings, wrap)
    finally:
        actors.close()


def core_of(member: Member) -> psutil.Process:
    """The process of vLLM behind an actor: the only child that multiprocessing has spawned."""
    children = psutil.Process(member.info.pid).children(recursive=True)
    titles = {child: " ".join(child.cmdline()) for child in children}
    (core,) = [
        child
        for child, title in titles.items()
        if title.startswith("VLLM::EngineCore") or "spawn_main" in title
    ]
    return core


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (OBJECT_STORE, signal.SIGKILL),
        (COLLECTIVE, signal.SIGKILL),
        (IPC, signal.SIGKILL),
        (COLLECTIVE, signal.SIGSTOP),
        (OBJECT_STORE, signal.SIGSTOP),
    ],
)
def test_an_engine_lost_within_a_publish(tmp_path: Path, kind: str, how: int):
    with fleet_of(tmp_path, kind) as run:
        # The first publish pays for new memory; the second says how long the third will take.
        assert run.published(1) == (0, 1)
        started = time.monotonic()
        run.transport.send(2)
        lasted_s = time.monotonic() - started
        victim = core_of(run.actors.members[1]).pid
        loss = Timer(0.4 * lasted_s, os.kill, (victim, how))
        loss.start()
        assert run.published(3) == (0,)
        assert not loss.is_alive(), "the publish ended before the engine was lost"
        assert num_lost(tmp_path) == 1
        run.wait_for_replacement(2)
        assert run.fleet.serving == (0,), "it has started, and has no weights"
        assert run.published(4) == (0, 1)
        assert num_lost(tmp_path) == 1


def test_a_replacement_that_gets_no_publish_is_refused(tmp_path: Path):
    with fleet_of(tmp_path, OBJECT_STORE, Dropping) as run:
        assert run.published(1) == (0, 1)
        os.kill(run.actors.members[1].info.pid, signal.SIGKILL)
        assert run.published(2) == (0,)
        run.wait_for_replacement(2)
        assert run.published(3) == (0,)
        assert num_lost(tmp_path) == 2
        text = (tmp_path / "events.jsonl").read_text()
        assert "generator_1.2 was refused by the gate" in text
        assert "reports weights of version 0, not 3" in text
