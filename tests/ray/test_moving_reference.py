"""The policy's weights on their way to a reference of two sharded ranks, through real actors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import RolePlan
from rlhf_ray.cluster.roles.learner import LearnerActor, LearnerGroup, LearnerSettings
from rlhf_ray.cluster.roles.reference import ReferenceActor, ReferenceGroup, ReferenceSettings
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.errors import RunFailed
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.training import ReferenceConfig, TrainingConfig
from rlhf_ray.driver.updates.reference_update import (
    PeriodicReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.models.tiny.llama import TinySizes
from rlhf_ray.publish.base import POLICY, TransferSettings
from rlhf_ray.publish.object_store import ObjectStoreTransport
from rlhf_ray.testing.fakes import make_group, make_prompt
from rlhf_ray.testing.tiny import tiny_random

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]
SIZES = TinySizes(
    hidden=32, intermediate=64, num_layers=2, num_heads=4, num_key_value_heads=2, head_size=8
)
ROLE = {"dtype": "float32", "cpu_threads": 1, "max_tokens_per_micro_batch": 64}
NUM_REFERENCES = 2


class Roles:
    """A policy of one rank, and a reference of two that starts from other weights."""

    def __init__(self, folder: Path) -> None:
        self.supervisor = Supervisor()
        self._group = placement_group([{"CPU": 0.3}] * (1 + NUM_REFERENCES))
        ray.get(self._group.ready(), timeout=60)
        self._launcher = Launcher(self._group, self.supervisor, timeout_s=120, stop_s=5)
        self._create("learner", LearnerActor, (0,), _learner_settings(folder))
        self._create("reference", ReferenceActor, (1, 2), _reference_settings(folder))
        members = self._launcher.members()
        self._start(members[:1])
        self._start(members[1:])
        self.learner, self.reference = LearnerGroup(members[:1]), ReferenceGroup(members[1:])
        self.first = members[0].handle

    def _create(self, role: str, actor: type, bundles: tuple[int, ...], settings: Any) -> None:
        plan = RolePlan(
            role=role, num_actors=len(bundles), num_cpus=0.2, num_gpus=0, bundle_indices=bundles
        )
        for rank in range(len(bundles)):
            self._launcher.create(plan, rank, actor, settings)

    def _start(self, ranks: list[Member]) -> None:
        address = ray.get(ranks[0].handle.reserve_address.remote(), timeout=60)
        refs = [m.handle.start.remote(m.name.rank, len(ranks), address, 120.0) for m in ranks]
        calls = [
            Call(member=m.name, signal=ref, payload=None)
            for m, ref in zip(ranks, refs, strict=True)
        ]
        self.supervisor.results(calls, phase="start", timeout_s=120)

    def reference_updater(self, **settings: Any) -> PeriodicReferenceUpdater:
        defaults = {"every_steps": 2, "timeout_s": 60.0}
        return PeriodicReferenceUpdater(
            policy=self.learner,
            reference=self.reference,
            transport=self.transport(self.learner),
            waiter=self.supervisor,
            settings=ReferenceUpdateSettings(**(defaults | settings)),
        )

    def transport(self, learner: LearnerGroup) -> ObjectStoreTransport:
        settings = TransferSettings(bucket_bytes=4096, phase="refresh", timeout_s=60.0)
        transport = ObjectStoreTransport(self.supervisor, settings)
        transport.open(learner, self.reference)
        return transport

    def scores(self, role: LearnerGroup | ReferenceGroup) -> list[float]:
        groups = [make_group(make_prompt(i), (0, 1), version=0) for i in range(2)]
        calls = role.score([ray.put(group) for group in groups], [8, 8])
        self.supervisor.results(calls, phase="reference", timeout_s=60)
        parts = [part for call in calls for part in ray.get(call.payload)]
        values = {part.prompt_id: part.values.tolist() for part in parts}
        return [number for name in sorted(values) for number in values[name]]

    def close(self) -> None:
        self._launcher.close(orderly=False)
        remove_placement_group(self._group)


def _learner_settings(folder: Path) -> LearnerSettings:
    return LearnerSettings(
        training=TrainingConfig(**ROLE),
        algorithm=AlgorithmConfig(),
        model=ModelConfig(path=str(folder / "policy")),
        max_response_tokens=8,
        temperature=1.0,
        total_optimizer_steps=1,
        seed=0,
        timeout_s=60.0,
    )


def _reference_settings(folder: Path) -> ReferenceSettings:
    sharded = ReferenceConfig(**ROLE, num_ranks=NUM_REFERENCES, zero_stage=3)
    return ReferenceSettings(
        reference=sharded,
        model=ModelConfig(path=str(folder / "other")),
        temperature=1.0,
        seed=0,
        timeout_s=60.0,
        decay=0.0,
        over_support=False,
    )


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "other")):
        tiny_random(folder / name, seed=seed, vocab_size=260, sizes=SIZES)
    roles = Roles(folder)
    yield roles
    roles.close()


def test_the_reference_becomes_the_policy_when_it_is_due(roles: Roles):
    reference_updater = roles.reference_updater()
    reference_updater.check()
    expected = roles.scores(roles.learner)
    apart = max(abs(a - b) for a, b in zip(roles.scores(roles.reference), expected, strict=True))
    assert apart > 1e-2, "they start from different weights"
    assert reference_updater.update_if_due(1) == {"reference/version": 0.0}
    still = max(abs(a - b) for a, b in zip(roles.scores(roles.reference), expected, strict=True))
    assert still == apart
    assert reference_updater.update_if_due(2) == {"reference/version": 2.0}
    assert roles.scores(roles.reference) == pytest.approx(expected, abs=1e-5)


def test_a_weight_that_is_missing_is_reported_with_role_phase_and_step(roles: Roles):
    class Forgetful(LearnerGroup):
        """Gives away no weights at all."""

        def weight_buckets(
            self, bucket_bytes: int, *, what: str = POLICY
        ) -> tuple[Call, list[Call]]:
            call, others = super().weight_buckets(bucket_bytes, what=what)
            return Call(member=call.member, signal=_nothing(), payload=None), others

    roles.supervisor.begin_step(4)
    forgetful = Forgetful(roles.learner._members)
    reference_updater = PeriodicReferenceUpdater(
        policy=forgetful,
        reference=roles.reference,
        transport=roles.transport(forgetful),
        waiter=roles.supervisor,
        settings=ReferenceUpdateSettings(every_steps=1, timeout_s=60.0),
    )
    with pytest.raises(RunFailed) as caught:
        reference_updater.update_if_due(4)
    headline = str(caught.value).splitlines()[0]
    assert "failed (phase refresh, step 4): ValueError: the policy did not send" in headline
    assert headline.startswith("reference_")
    assert "and 17 more" in headline


@ray.remote
class _Empty:
    def stream(self):
        yield from ()


def _nothing():
    return _Empty.options(num_cpus=0).remote().stream.options(num_returns="streaming").remote()
