"""Puppets under a supervisor, launched as a run launches its roles."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import ray
from ray.util.placement_group import placement_group, remove_placement_group

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import RolePlan
from rlhf_ray.cluster.runtime.launch import Launcher
from rlhf_ray.cluster.runtime.supervisor import Supervisor
from rlhf_ray.config.errors import RunFailed
from tests.ray.workers import Puppet

NUM_PUPPETS = 2


class Troupe:
    """Two of them."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.group = placement_group([{"CPU": 0.2}] * NUM_PUPPETS)
        ray.get(self.group.ready(), timeout=60)
        self.supervisor = Supervisor()
        self.launcher = Launcher(
            self.group, self.supervisor, timeout_s=60, stop_s=5, environment=environment
        )
        plan = RolePlan(
            role="puppet",
            num_actors=NUM_PUPPETS,
            num_cpus=0.1,
            num_gpus=0,
            bundle_indices=(0, 1),
        )
        for rank in range(NUM_PUPPETS):
            self.launcher.create(plan, rank, Puppet, {"rank": rank})
        try:
            self.members = self.launcher.members()
        except BaseException:
            # Their names and their place would be missing to every test after this one.
            self.close()
            raise
        self.supervisor.begin_step(7)

    def close(self) -> None:
        self.launcher.close(orderly=False)
        remove_placement_group(self.group)

    def call(self, rank: int, reference) -> Call:
        return Call(member=self.members[rank].name, signal=reference, payload=None)

    def wait(self, *calls: Call, timeout_s: float = 30) -> list:
        return self.supervisor.results(calls, phase="update", timeout_s=timeout_s)

    def failure(self, *calls: Call, timeout_s: float = 30) -> str:
        with pytest.raises(RunFailed) as caught:
            self.wait(*calls, timeout_s=timeout_s)
        return str(caught.value)
