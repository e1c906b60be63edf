"""Variables of workers, and the address of an interface."""

from __future__ import annotations

import pytest

from rlhf_ray.cluster.roles.run_roles import resource_plan
from rlhf_ray.cluster.runtime.worker_environment import chosen_address, worker_environment
from rlhf_ray.config.groups.runtime import PlacementConfig
from rlhf_ray.config.load import load_config


def test_without_settings_workers_get_nothing():
    assert worker_environment(PlacementConfig()) == {}
    assert chosen_address({}) is None


def test_the_address_is_that_of_the_interface():
    chosen = worker_environment(PlacementConfig(network_interface="lo"))
    assert chosen_address(chosen) == "127.0.0.1"
    chosen = worker_environment(PlacementConfig(network_interface="nosuch0"))
    with pytest.raises(ValueError, match=r"network_interface=nosuch0: .*no such interface.*lo"):
        chosen_address(chosen)


def test_values_of_the_driver_are_in_no_print_of_the_plan(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret")
    plan = resource_plan(load_config(["recipe=demo", "placement.env_from_driver=[A_TOKEN]"]))
    assert plan.environment == {"A_TOKEN": "secret"}
    assert "secret" not in repr(plan)
