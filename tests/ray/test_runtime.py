"""Resources on a real cluster: reserved, refused, given back."""

from __future__ import annotations

import socket
import time

import pytest
import ray

from rlhf_ray.cluster.resource_plan import ResourcePlan, RolePlan
from rlhf_ray.cluster.runtime.session import reserved
from rlhf_ray.cluster.runtime.worker_environment import worker_environment
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.runtime import PlacementConfig
from tests.ray.troupe import Troupe

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
    """However long a plan that fits may wait for what other jobs hold."""
    started = time.monotonic()
    with (
        pytest.raises(RequestError, match=r"too small after a wait of \d s: learner.*ray status"),
        reserved(plan(3.0), wait_s=3, timeout_s=300),
    ):
        pass
    assert 3 <= time.monotonic() - started < 30


def test_resources_that_others_hold_are_waited_for():
    started = time.monotonic()
    with (
        reserved(plan(1.5), wait_s=0, timeout_s=30),
        pytest.raises(RequestError, match="its resources are taken by other jobs"),
        reserved(plan(1.5), wait_s=0, timeout_s=2),
    ):
        pass
    assert time.monotonic() - started >= 2


def test_workers_get_the_variables_and_the_address_of_the_interface(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    placement = PlacementConfig(
        network_interface="lo", env={"NCCL_IB_TIMEOUT": "22"}, env_from_driver=["A_TOKEN"]
    )
    troupe = Troupe(worker_environment(placement))
    try:
        expected = {
            "NCCL_IB_TIMEOUT": "22",
            "A_TOKEN": "secret",
            "NCCL_SOCKET_IFNAME": "=lo",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        for member in troupe.members:
            found = member.handle.variables.remote([*expected, "PATH"])
            found = ray.get(found, timeout=60)
            assert found.pop("PATH"), "those of the node are still there"
            assert found == expected
        first = troupe.members[0].handle
        host, port = ray.get(first.reserve_address.remote(), timeout=60)
        assert host == "127.0.0.1"
        # It holds the port: another process cannot come in between.
        with pytest.raises(OSError, match="in use"), socket.create_server((host, port)):
            pass
    finally:
        troupe.close()


def test_a_node_without_the_interface_is_found_before_anything_is_loaded():
    environment = worker_environment(PlacementConfig(network_interface="nosuch0"))
    with pytest.raises(
        RunFailed, match=r"puppet_\d failed .*placement\.network_interface=nosuch0: .* it has .*lo"
    ):
        Troupe(environment)
