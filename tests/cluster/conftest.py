"""Two hosts with a Ray cluster on them, and a model that both see."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.testing.tiny import tiny_random
from tests.cluster.hosts import why_not
from tests.cluster.ray_hosts import RayHosts


@pytest.fixture(scope="session")
def can_have_hosts() -> None:
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(can_have_hosts: None) -> Iterator[RayHosts]:
    cluster = RayHosts(2)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def model(cluster: RayHosts) -> Path:
    return tiny_random(cluster.shared / "model")
