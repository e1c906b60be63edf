"""A small local Ray cluster and puppets on it, shared by the tests of this folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import ray

from tests.ray.troupe import Troupe


@pytest.fixture(scope="package", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        # Gauges are exported every ten seconds otherwise.
        _system_config={"metrics_report_interval_ms": 500},
    )
    yield
    ray.shutdown()


class SharedTroupe:
    """The troupe of all tests that leave it as it was; puppets have names, so two cannot be."""

    def __init__(self) -> None:
        self._troupe: Troupe | None = None

    def get(self) -> Troupe:
        if self._troupe is None:
            self._troupe = Troupe()
        return self._troupe

    def close(self) -> None:
        if self._troupe is not None:
            self._troupe.close()
        self._troupe = None


@pytest.fixture(scope="package")
def shared_troupes(local_ray: None) -> Iterator[SharedTroupe]:
    shared = SharedTroupe()
    yield shared
    shared.close()


@pytest.fixture
def shared_troupe(shared_troupes: SharedTroupe) -> Troupe:
    """For tests after which both puppets are as idle and alive as before."""
    return shared_troupes.get()


@pytest.fixture
def no_troupe(shared_troupes: SharedTroupe) -> None:
    """All resources of the cluster are free."""
    shared_troupes.close()


@pytest.fixture
def troupe(shared_troupes: SharedTroupe) -> Iterator[Troupe]:
    """A new one, for tests that keep a puppet busy or end it."""
    shared_troupes.close()
    troupe = Troupe()
    yield troupe
    troupe.close()
