"""What Ray Serve is told: the limits that its proxies and queues have."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.cluster.ray_serve import application, http_options
from rlhf_ray.config.groups.deploy import ServeConfig, ServeLimitsConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.serving.local import ServedModel

SETTINGS = ServeConfig(
    port=8123,
    max_requests_under_way=7,
    limits=ServeLimitsConfig(idle_s=11, client_s=5.0, answer_s=60.0),
)


def test_no_request_waits_for_ever_in_a_proxy_and_no_number_of_them():
    assert http_options(SETTINGS) == {
        "host": "127.0.0.1",
        "port": 8123,
        "keep_alive_timeout_s": 11,
        "request_timeout_s": 65.0,
    }
    told: dict[str, Any] = {}

    def deployment(replica: Any, **options: Any) -> Any:
        told.update(options)
        return SimpleNamespace(bind=lambda *arguments: arguments)

    served = ServedModel(
        name="m",
        model=ModelConfig(path="a/b"),
        generation=GenerationConfig(),
        serve=SETTINGS,
        start_s=1.0,
        stop_s=2.0,
    )
    bound = application(SimpleNamespace(deployment=deployment), served, None, Path("logs"))
    assert bound == (served, None, Path("logs"))
    assert told["max_ongoing_requests"] == told["max_queued_requests"] == 7


@pytest.mark.slow  # Its packages are an extra, which `make test-slow` installs.
def test_ray_serve_knows_these_options():
    from ray.serve.config import HTTPOptions

    assert http_options(SETTINGS).items() <= HTTPOptions(**http_options(SETTINGS)).dict().items()
