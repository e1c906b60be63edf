"""Every transport between real learner ranks and real engines: the same weights, the same gate.

A learner trains (its weights are those of another seed than the engines'), publishes, and both
score the probe. Learner ranks are cheap to start, engines are not: one set of engines serves all
ZeRO stages.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rlhf_ray.calls import Call
from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.resource_plan import RolePlan
from rlhf_ray.cluster.roles.generator import EngineSettings, GeneratorActor
from rlhf_ray.cluster.roles.learner import LearnerActor, LearnerGroup, LearnerSettings
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import TrainingConfig
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.publish.base import AVERAGE, POLICY, TransferSettings
from rlhf_ray.publish.gate import FidelityError, make_probe
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.publish.transports import COLLECTIVE, IPC, OBJECT_STORE, TRANSPORTS
from rlhf_ray.testing.tiny import tiny_random

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
START_S = 300.0
PROBE = make_probe([], num_sequences=3, num_tokens=24, vocab_size=300, seed=0)


class Actors:
    """Actors of one role, ended together."""

    def __init__(self, role: str, actor: type, settings: Sequence[Any]) -> None:
        self.supervisor = Supervisor()
        self._group = placement_group([{"CPU": 0.05}] * len(settings))
        ray.get(self._group.ready(), timeout=60)
        self._launcher = Launcher(self._group, self.supervisor, timeout_s=START_S, stop_s=10)
        plan = RolePlan(
            role=role,
            num_actors=len(settings),
            num_cpus=0.05,
            num_gpus=0,
            bundle_indices=tuple(range(len(settings))),
        )
        for rank, own in enumerate(settings):
            self._launcher.create(plan, rank, actor, own)
        self.members = self._launcher.members()

    def start(self, *arguments: Any) -> None:
        calls = [
            Call(member=m.name, signal=m.handle.start.remote(*of), payload=None)
            for m, of in zip(self.members, arguments, strict=True)
        ]
        self.supervisor.results(calls, phase="start", timeout_s=START_S)
        self._launcher.remember_processes()

    def close(self) -> None:
        self._launcher.close(orderly=False)
        remove_placement_group(self._group)


@contextmanager
def engines(folder: Path, *, num_engines: int, width: int) -> Iterator[list[Member]]:
    settings = EngineSettings(
        generation=GenerationConfig(
            dtype="float32",
            tensor_parallel_size=width,
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
    started = Actors(
        "generator",
        GeneratorActor,
        [replace(settings, engine_index=index) for index in range(num_engines)],
    )
    try:
        started.start(*([((),)] * num_engines))
        yield started.members
    finally:
        started.close()


@contextmanager
def learner(
    folder: Path, *, num_ranks: int, zero_stage: int, model: str = "model1", **training: Any
) -> Iterator[LearnerGroup]:
    settings = LearnerSettings(
        training=TrainingConfig(
            dtype="float32",
            num_ranks=num_ranks,
            zero_stage=zero_stage,
            cpu_threads=1,
            max_tokens_per_micro_batch=64,
            **training,
        ),
        algorithm=AlgorithmConfig(),
        model=ModelConfig(path=str(folder / model)),
        max_response_tokens=24,
        temperature=1.0,
        total_optimizer_steps=1,
        seed=0,
        timeout_s=120.0,
    )
    ranks = Actors("learner", LearnerActor, [settings] * num_ranks)
    try:
        address = ray.get(ranks.members[0].handle.reserve_address.remote(), timeout=60)
        ranks.start(*((rank, num_ranks, address, START_S) for rank in range(num_ranks)))
        yield LearnerGroup(ranks.members)
    finally:
        ranks.close()


class Publishing:
    """A publisher over a transport that is open for a `with` block."""

    def __init__(
        self, kind: str, source: LearnerGroup, receivers: Sequence[Member], *, timeout_s: float
    ) -> None:
        self.waiter = Supervisor({"publish_s": timeout_s})
        for member in (*source._members, *receivers):
            self.waiter.add(member)
        # Ten buckets or so, and an embedding that is larger than a bucket.
        settings = TransferSettings(bucket_bytes=40_000, phase="publish", timeout_s=timeout_s)
        self.transport = TRANSPORTS[kind].make(self.waiter, settings)
        group = GeneratorGroup(receivers)
        self.transport.open(source, group)
        self.publisher = Publisher(
            source=source,
            receivers=group,
            transport=self.transport,
            turns=DedicatedDevices(),
            waiter=self.waiter,
            probe=PROBE,
            settings=PublishSettings(probe_every=1, probe_tolerance=1e-4, timeout_s=60.0),
        )

    def scores(self) -> list[list[list[float]]]:
        sequences = list(PROBE.sequences)
        calls = self.publisher._receivers.score_sequences(sequences)
        return self.waiter.results(calls, phase="publish", timeout_s=60.0)


@contextmanager
def publishing(
    kind: str, source: LearnerGroup, receivers: Sequence[Member], timeout_s: float = 120.0
) -> Iterator[Publishing]:
    opened = Publishing(kind, source, receivers, timeout_s=timeout_s)
    yield opened
    opened.transport.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed in (0, 1, 2):
        tiny_random(root / f"model{seed}", seed=seed)
    return root


@pytest.fixture(scope="module")
def one_engine(folder: Path) -> Iterator[list[Member]]:
    with engines(folder, num_engines=1, width=1) as members:
        yield members


def check_all_transports(source: LearnerGroup, receivers: Sequence[Member], version: int) -> int:
    """Publish by every transport; the engines must compute the same, bit for bit."""
    scored = {}
    for kind in (OBJECT_STORE, COLLECTIVE, IPC):
        with publishing(kind, source, receivers) as opened:
            # Twice: the second time the buffers are full of the first.
            for _ in range(2):
                version += 1
                metrics = opened.publisher.publish(version)
                assert metrics["publish/probe_gap_max"] < 1e-4
            scored[kind] = opened.scores()
            asked = GeneratorGroup(receivers).update_seconds()
            for seconds in opened.waiter.results(asked, phase="publish", timeout_s=60.0):
                assert list(seconds) == ["pause", "weights", "resume"]
                assert all(0 < part < 120 for part in seconds.values())
    assert scored[OBJECT_STORE] == scored[COLLECTIVE] == scored[IPC]
    return version


def test_two_sharded_ranks_and_an_engine(folder: Path, one_engine: list[Member]):
    """The three transports, and the EMA by a channel. The engine has other weights before."""
    with learner(folder, num_ranks=2, zero_stage=3, ema_decay=0.9) as source:
        with (
            publishing(OBJECT_STORE, source, one_engine) as opened,
            pytest.raises(FidelityError, match="engine 0 differs"),
        ):
            opened.publisher.check_loaded(0)
        version = check_all_transports(source, one_engine, 0)
        with publishing(COLLECTIVE, source, one_engine) as opened:
            opened.transport.send(version + 1, what=AVERAGE)
            # The policy has taken no step: its average is the policy.
            opened.publisher.check_loaded(version + 1)
            opened.transport.send(version + 2, what=POLICY)
            opened.publisher.check_loaded(version + 2)


@pytest.mark.nightly
@pytest.mark.parametrize(("num_engines", "width"), [(2, 1), (1, 2), (2, 2)])
def test_every_zero_stage_and_shape(folder: Path, num_engines: int, width: int):
    version = 0
    with engines(folder, num_engines=num_engines, width=width) as receivers:
        for stage in (0, 1, 2, 3):
            # Other weights each time: a publish that changes nothing would be found.
            model = f"model{1 + stage % 2}"
            with learner(folder, num_ranks=2, zero_stage=stage, model=model) as source:
                version = check_all_transports(source, receivers, version)


def worker_of(member: Member) -> psutil.Process:
    """The process of an engine that receives: vLLM's last worker, or its engine process."""
    deadline = time.monotonic() + 30
    while True:
        children = psutil.Process(member.info.pid).children(recursive=True)
        titles = {p: " ".join(p.cmdline()) for p in children if p.is_running()}
        for title in ("VLLM::Worker", "VLLM::EngineCore"):
            named = [process for process, words in titles.items() if words.startswith(title)]
            if named:
                return named[-1]
        assert time.monotonic() < deadline, titles
        time.sleep(0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("kind", [COLLECTIVE, IPC])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_receiver_ends_the_publish_by_name(folder: Path, how: int, kind: str, width: int):
    """In time, with the sharded ranks free again, and the other engine as good as new."""
    deadline_s = 30.0
    with (
        engines(folder, num_engines=2, width=width) as receivers,
        learner(folder, num_ranks=2, zero_stage=3) as source,
    ):
        opened = Publishing(kind, source, receivers, timeout_s=deadline_s)
        opened.publisher.publish(1)
        os.kill(worker_of(receivers[1]).pid, how)
        started = time.monotonic()
        with pytest.raises(RunFailed) as caught:
            opened.publisher.publish(2)
        # The deadline, the wait for the others' words, and the stacks of all for the report.
        assert time.monotonic() - started < deadline_s + 60
        assert "generator_1" in str(caught.value).splitlines()[0]
        assert "generator_0: no answer" not in str(caught.value).splitlines()[0]
        # No rank hangs in a gather: scoring is another one.
        scoring = source.score_sequences(list(PROBE.sequences))
        opened.waiter.results(scoring, phase="publish", timeout_s=deadline_s)
        if width == 1:
            # An engine of one worker takes weights by another channel; one of two has been ended.
            with publishing(kind, source, receivers[:1]) as again:
                assert again.publisher.publish(3)["publish/probe_gap_max"] < 1e-4


# 140 MB, and most tensors are buckets of their own: a publish takes some tenths of a second.
LARGER = TinySizes(hidden=512, intermediate=1536, num_layers=12, num_heads=8)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("how", "kind"),
    [(signal.SIGSTOP, COLLECTIVE), (signal.SIGKILL, IPC), (signal.SIGSTOP, IPC)],
)
def test_one_worker_of_two_is_lost_within_a_publish(tmp_path: Path, how: int, kind: str):
    """Its engine is named, and the sharded ranks are free again."""
    deadline_s = 30.0
    tiny_random(tmp_path / "model0", seed=0, sizes=LARGER)
    tiny_random(tmp_path / "model1", seed=1, sizes=LARGER)
    with (
        engines(tmp_path, num_engines=1, width=2) as receivers,
        learner(tmp_path, num_ranks=2, zero_stage=3) as source,
    ):
        opened = Publishing(kind, source, receivers, timeout_s=deadline_s)
        # The first publish pays for new memory; the second says how long the third will take.
        for version in (1, 2):
            started = time.monotonic()
            opened.transport.send(version)
            lasted_s = time.monotonic() - started
        loss = Timer(0.4 * lasted_s, os.kill, (worker_of(receivers[0]).pid, how))
        started = time.monotonic()
        loss.start()
        with pytest.raises(RunFailed) as caught:
            opened.transport.send(3)
        ended_s = time.monotonic() - started
        assert not loss.is_alive(), "the publish failed before the worker was lost"
        message = str(caught.value).splitlines()[0]
        print(f"lost after {0.4 * lasted_s:.1f} s of {lasted_s:.1f}; ended in {ended_s:.0f} s")
        print(message)
        # The deadline, the wait for the others' words, and the stacks of all for the report.
        assert ended_s < deadline_s + 60
        assert "generator_0" in message
        scoring = source.score_sequences(list(PROBE.sequences))
        opened.waiter.results(scoring, phase="publish", timeout_s=deadline_s)
