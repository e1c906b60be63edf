"""A small local Ray cluster, shared by the tests of this folder."""

from __future__ import annotations

import logging

import pytest
import ray

from tests.ray.troupe import Troupe


@pytest.fixture(scope="session", autouse=True)
def local_ray():
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture
def troupe():
    troupe = Troupe()
    yield troupe
    troupe.close()
