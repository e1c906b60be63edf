"""A model on the nodes of a Ray cluster, behind Ray Serve's proxies.

Each of Ray Serve's replicas is a separate endpoint with one vLLM server, as `stage=serve` has it
on one machine: it watches its server, and starts it again. Ray Serve spreads the requests, starts
replicas as they are needed, and replaces those that have given up.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.scratch_folder import scratch_folder
from rlhf_ray.serving.local import ServedModel, local_fleet, make_front
from rlhf_ray.serving.replica import ReplicaState

_POLL_S = 0.5
_APPLICATION = "rlhf_ray"


class ModelReplica:
    """One replica, in an actor of Ray Serve.

    Args:
        logs: folder of what its server writes, on the replica's node.
    """

    async def __init__(self, served: ServedModel, token: BearerToken | None, logs: Path) -> None:
        from ray import serve

        replica = serve.get_replica_context().replica_id.unique_id
        # Kept open until the process ends: the server's sockets are in it.
        self._scratch = scratch_folder()
        fleet = local_fleet(
            served,
            scratch=self._scratch.__enter__(),
            logs=logs / f"ray_serve_{replica}",
            num_replicas=1,
            report=lambda line: print(line, flush=True),
        )
        self._fleet = fleet
        self._application = make_front(served, fleet, token).application()
        ready = asyncio.Event()
        self._work = asyncio.create_task(fleet.supervise(ready.set))
        is_ready = asyncio.create_task(ready.wait())
        await asyncio.wait({self._work, is_ready}, return_when=asyncio.FIRST_COMPLETED)
        if self._work.done():
            is_ready.cancel()
            self._work.result()

    async def __call__(self, _: Request) -> Response:
        return _Through(self._application)

    async def check_health(self) -> None:
        """Ray Serve asks; a replica that raises is replaced."""
        if self._fleet.state is ReplicaState.FAILED:
            self._work.result()
            raise RuntimeError("the server of this replica has ended")

    async def __del__(self) -> None:
        # Asynchronous, as Ray Serve calls it, and allows it, at the end of a replica.
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)
        self._scratch.__exit__(None, None, None)


class _Through(Response):
    """The reply is what an application sends."""

    def __init__(self, application: Any) -> None:
        super().__init__()
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._application(scope, receive, send)


@contextmanager
def deployed(
    served: ServedModel, token: BearerToken | None, *, logs: Path
) -> Iterator[tuple[str, Callable[[], bool]]]:
    """The model on the cluster that this process is connected to, as long as the block runs.

    Yields:
        the URL of Ray Serve's proxy, and a function that says whether the model runs, and raises
        when it never will.

    Raises:
        RequestError: Ray Serve is not installed.
        RunFailed: it is not ready after `deadlines.start_s`.
    """
    serve = _import_serve()
    settings = served.serve
    serve.start(http_options=http_options(settings))
    try:
        serve.run_many(
            [serve.RunTarget(application(serve, served, token, logs), name=_APPLICATION)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )
        _wait_until_running(serve, served.start_s)
        host = socket.gethostname() if settings.host in ("0.0.0.0", "::") else settings.host
        yield f"http://{host}:{settings.port}", lambda: _check(serve)
    finally:
        serve.delete(_APPLICATION)
        if not serve.status().applications:
            serve.shutdown()


def check_ray_serve() -> None:
    """See that Ray Serve is installed.

    Raises:
        RequestError: it is not.
    """
    _import_serve()


def _import_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise RequestError(
            f"serve.backend=ray_serve needs Ray Serve: install rlhf_ray with its extra serve "
            f"({error.msg})"
        ) from error
    return serve


def http_options(settings: ServeConfig) -> dict[str, Any]:
    """Options of Ray Serve's proxies: their address, and the limits that they have.

    Replicas limit bodies and answers, as on one machine (`serving.front`). A proxy may keep a
    request that no replica has taken: its time is limited here, by the longest that one may take.
    """
    limits = settings.limits
    return {
        "host": settings.host,
        "port": settings.port,
        "keep_alive_timeout_s": limits.idle_s,
        "request_timeout_s": limits.client_s + limits.answer_s,
    }


def application(serve: Any, served: ServedModel, token: BearerToken | None, logs: Path) -> Any:
    """The deployment of a model, for `serve.run_many`."""
    settings, generation = served.serve, served.generation
    most = settings.max_replicas or settings.replicas
    deployment = serve.deployment(
        ModelReplica,
        name=_APPLICATION,
        num_replicas="auto",
        autoscaling_config={
            "min_replicas": settings.replicas,
            "max_replicas": most,
            "target_ongoing_requests": settings.requests_per_replica,
        },
        max_ongoing_requests=settings.max_requests_under_way,
        # By default any number waits in a proxy, each with its body in memory. More get 503.
        max_queued_requests=settings.max_requests_under_way,
        graceful_shutdown_timeout_s=served.stop_s,
        ray_actor_options={
            "num_cpus": generation.num_cpus,
            "num_gpus": generation.num_gpus * generation.tensor_parallel_size,
        },
    )
    return deployment.bind(served, token, logs)


def _wait_until_running(serve: Any, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    while not _check(serve):
        if time.monotonic() > deadline:
            raise RunFailed(
                f"the replicas were not ready after deadlines.start_s={start_s:g} s: "
                f"{_messages(serve)}"
            )
        time.sleep(_POLL_S)


def _check(serve: Any) -> bool:
    """Whether it runs.

    Raises:
        RunFailed: it never will.
    """
    application = serve.status().applications[_APPLICATION]
    if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
        raise RunFailed(f"Ray Serve gave the model up: {_messages(serve)}")
    return application.status == "RUNNING"


def _messages(serve: Any) -> str:
    application = serve.status().applications[_APPLICATION]
    deployments = [d.message for d in application.deployments.values()]
    found = [text for text in (application.message, *deployments) if text]
    return " ".join(found) or f"its status is {application.status}"
