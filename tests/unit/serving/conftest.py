"""Endpoints in front of fake vLLM servers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.serving.endpoint import Endpoint


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Endpoint]:
    """An endpoint for tests that do not change its state."""
    endpoint = Endpoint(tmp_path_factory.mktemp("front")).wait_until_ready()
    yield endpoint
    assert endpoint.reports[-1] == "all ready", "nothing has brought a replica down"
    endpoint.close()


@pytest.fixture
def make_endpoint(tmp_path) -> Iterator:
    made: list[Endpoint] = []

    def make(**settings) -> Endpoint:
        made.append(Endpoint(tmp_path, **settings))
        return made[-1]

    yield make
    for endpoint in made:
        endpoint.close()
