"""Resources on a real cluster: reserved, refused, given back."""

from __future__ import annotations

import time

import pytest
import ray

from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.config.errors import RequestError

pytestmark = pytest.mark.usefixtures("no_troupe")


def plan(cpus: float, gpus: float = 0.0) -> ResourcePlan:
    role = RolePlan(role="learner", num_actors=1, num_cpus=cpus, num_gpus=gpus, bundle_indices=(0,))
    return ResourcePlan(roles=(role,), bundles=({"CPU": cpus, "GPU": gpus},), strategy="PACK")


def test_reserved_and_given_back():
    with reserved(plan(1.5), wait_s=0, timeout_s=30) as group:
        assert len(group.bundle_specs) == 1
        assert ray.available_resources().get("CPU", 0) < 1
    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 2


@pytest.mark.parametrize(("cpus", "gpus", "words"), [(3.0, 0.0, "3 CPUs"), (1.0, 1.0, "1 GPUs")])
def test_a_cluster_that_is_too_small_is_refused_at_once(cpus, gpus, words):
    started = time.monotonic()
    with (
        pytest.raises(RequestError, match=rf"too small: learner.*{words}"),
        reserved(plan(cpus, gpus), wait_s=0, timeout_s=30),
    ):
        pass
    assert time.monotonic() - started < 5


def test_an_autoscaler_gets_its_time_and_no_more():
    started = time.monotonic()
    with (
        pytest.raises(RequestError, match="too small"),
        reserved(plan(3.0), wait_s=3, timeout_s=1),
    ):
        pass
    assert 3 <= time.monotonic() - started < 15
