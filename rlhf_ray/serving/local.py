"""vLLM servers on this machine, and the endpoint in front of them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.run import Config
from rlhf_ray.generation.engine_arguments import server_arguments
from rlhf_ray.generation.server.openai_server import server_command, server_environment
from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.front import Front
from rlhf_ray.serving.replica import Replica, ReplicaLimits, Report
from rlhf_ray.serving.server import address_of, listen, serving
from rlhf_ray.serving.server_process import ServerCommand

MODEL_FOLDER = "model"
_POLL_S = 0.1


def model_name(config: Config) -> str:
    """Name of the model in requests."""
    if config.serve.model_name:
        return config.serve.model_name
    path = config.model.path
    if not Path(path).is_dir():
        return path.removeprefix("builtin:")
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == MODEL_FOLDER else folder.name


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private temporary folder for sockets. The path is short: Unix sockets allow 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="rlhf_ray_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def local_fleet(
    config: Config,
    name: str,
    *,
    scratch: Path,
    logs: Path,
    num_replicas: int,
    report: Report,
    first_index: int = 0,
) -> Fleet:
    """Make the replicas, without starting them.

    Args:
        name: name of the model in requests.
        scratch: private folder for sockets and arguments.
        logs: folder for the servers' logs.
        first_index: index of the first replica. Each index has its own CPUs or GPUs and its own
            log.

    Raises:
        RequestError: there are fewer GPUs than the replicas need.
    """
    logs.mkdir(parents=True, exist_ok=True)
    limits = ReplicaLimits.of(config.serve, start_s=config.deadlines.start_s)
    replicas = [
        Replica(index, _command(config, name, index, scratch, logs), limits, report)
        for index in range(first_index, first_index + num_replicas)
    ]
    return Fleet(replicas, max_in_flight=config.serve.max_requests_under_way, report=report)


def make_front(config: Config, name: str, fleet: Fleet, token: BearerToken | None) -> Front:
    """The endpoint in front of a fleet."""
    return Front(
        fleet=fleet,
        model_name=name,
        token=token,
        max_request_bytes=config.serve.max_request_bytes,
    )


def _command(config: Config, name: str, index: int, scratch: Path, logs: Path) -> ServerCommand:
    socket = scratch / f"{index}.sock"
    arguments = server_arguments(
        config.generation,
        config.model,
        model_name=name,
        max_model_tokens=config.serve.max_model_tokens,
        socket=str(socket),
    )
    file = scratch / f"{index}.json"
    file.write_text(json.dumps(arguments), encoding="utf-8")
    return ServerCommand(
        command=server_command(file),
        environment=server_environment(
            config.generation,
            replica=index,
            scratch=scratch,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        ),
        socket=socket,
        log=logs / f"replica_{index}.log",
    )


@contextmanager
def private_endpoint(
    config: Config, name: str, *, index: int, logs: Path, report: Report
) -> Iterator[tuple[str, BearerToken]]:
    """Start one server of `model.path` for this process only, and wait until it is ready.

    Args:
        index: see `local_fleet`.

    Yields:
        URL and key of the endpoint.

    Raises:
        RequestError, RunFailed: it did not start.
    """
    token = BearerToken(secrets.token_urlsafe(32))
    ready = threading.Event()
    with closing(listen("127.0.0.1", 0)) as listener, scratch_folder() as scratch:
        fleet = local_fleet(
            config,
            name,
            scratch=scratch,
            logs=logs,
            num_replicas=1,
            report=report,
            first_index=index,
        )
        front = make_front(config, name, fleet, token)
        with serving(front.application, listener, work=lambda: fleet.supervise(ready.set)) as check:
            while not ready.wait(_POLL_S):
                check()
            yield f"{address_of(listener)}/v1", token
