"""vLLM servers on this machine, and the endpoint in front of them."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.generation.engine_arguments import server_arguments
from rlhf_ray.generation.server.openai_server import server_command, server_environment
from rlhf_ray.scratch_folder import scratch_folder
from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.front import Front
from rlhf_ray.serving.replica import Replica, ReplicaLimits, Report
from rlhf_ray.serving.server import address_of, listen, serving
from rlhf_ray.serving.server_process import ServerCommand

MODEL_FOLDER = "model"
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A language model with the settings of its servers.

    Attributes:
        name: the name of the model in requests.
        start_s, stop_s: time limits of the start and of an orderly end.
    """

    name: str
    model: ModelConfig
    generation: GenerationConfig
    serve: ServeConfig
    start_s: float
    stop_s: float


def model_name(chosen: str | None, path: str) -> str:
    """The name of a model in requests: the configured one, or one made of its path."""
    if chosen:
        return chosen
    if not Path(path).is_dir():
        return path.removeprefix("builtin:")
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == MODEL_FOLDER else folder.name


def local_fleet(
    served: ServedModel,
    *,
    scratch: Path,
    logs: Path,
    num_replicas: int,
    report: Report,
    first_index: int = 0,
) -> Fleet:
    """Make the replicas, without starting them.

    Args:
        scratch: private folder for sockets and arguments.
        logs: folder for the servers' logs.
        first_index: index of the first replica. Each index has its own CPUs or GPUs and its own
            log.

    Raises:
        RequestError: there are fewer GPUs than the replicas need.
    """
    logs.mkdir(parents=True, exist_ok=True)
    limits = ReplicaLimits.of(served.serve, start_s=served.start_s)
    replicas = [
        Replica(index, _command(served, index, scratch, logs), limits, report)
        for index in range(first_index, first_index + num_replicas)
    ]
    return Fleet(replicas, max_in_flight=served.serve.max_requests_under_way, report=report)


def make_front(served: ServedModel, fleet: Fleet, token: BearerToken | None) -> Front:
    """The endpoint in front of a fleet."""
    return Front(
        fleet=fleet,
        model_name=served.name,
        token=token,
        settings=served.serve,
        parses_calls=bool(served.generation.extra_engine_args.get("enable_auto_tool_choice")),
    )


def _command(served: ServedModel, index: int, scratch: Path, logs: Path) -> ServerCommand:
    socket = scratch / f"{index}.sock"
    arguments = server_arguments(
        served.generation,
        served.model,
        model_name=served.name,
        max_model_tokens=served.serve.max_model_tokens,
        socket=str(socket),
    )
    file = scratch / f"{index}.json"
    file.write_text(json.dumps(arguments), encoding="utf-8")
    return ServerCommand(
        command=server_command(file),
        environment=server_environment(
            served.generation,
            replica=index,
            scratch=scratch,
            visible_gpus=os.environ.get("CUDA_VISIBLE_DEVICES"),
        ),
        socket=socket,
        log=logs / f"replica_{index}.log",
    )


@contextmanager
def private_endpoint(
    served: ServedModel, *, index: int, logs: Path, report: Report
) -> Iterator[tuple[str, BearerToken]]:
    """Start one server of a model for this process only, and wait until it is ready.

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
            served,
            scratch=scratch,
            logs=logs,
            num_replicas=1,
            report=report,
            first_index=index,
        )
        front = make_front(served, fleet, token)
        work = partial(fleet.supervise, ready.set)
        limits = served.serve.limits
        with serving(front.application, listener, work=work, limits=limits) as check:
            while not ready.wait(_POLL_S):
                check()
            yield f"{address_of(listener)}/v1", token
