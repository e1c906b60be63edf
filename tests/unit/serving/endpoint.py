"""An endpoint in a thread, in front of fake vLLM servers that are real processes."""

from __future__ import annotations

import asyncio
import http.client
import json
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.groups.deploy import ServeConfig
from rlhf_ray.serving.fleet import Fleet
from rlhf_ray.serving.front import Front
from rlhf_ray.serving.replica import Replica, ReplicaLimits
from rlhf_ray.serving.server import address_of, listen
from rlhf_ray.serving.server_process import ServerCommand

KEY = BearerToken("k3y")
FAKE = Path(__file__).with_name("fake_upstream.py")


def limits(**changes: Any) -> ReplicaLimits:
    settings: dict[str, Any] = {
        "start_s": 30.0,
        "every_s": 0.2,
        "health_timeout_s": 1.0,
        "stall_s": 60.0,
        "max_restarts": 3,
        "restart_window_s": 600.0,
    }
    return ReplicaLimits(**(settings | changes))


class Endpoint:
    """The endpoint, its replicas, and what was reported."""

    def __init__(
        self,
        folder: Path,
        *,
        num_replicas: int = 1,
        given: ReplicaLimits | None = None,
        max_in_flight: int = 64,
        command: list[str] | None = None,
        settings: ServeConfig | None = None,
        token: BearerToken | None = KEY,
        parses_calls: bool = False,
    ) -> None:
        self.reports: list[str] = []
        self.notes = folder / "notes"
        self.notes.touch()
        self.failure: BaseException | None = None
        replicas = [
            Replica(
                index,
                self._server(folder, index, command),
                given or limits(),
                self.reports.append,
            )
            for index in range(num_replicas)
        ]
        self.fleet = Fleet(replicas, max_in_flight=max_in_flight, report=self.reports.append)
        settings = settings or ServeConfig(max_request_bytes=4000)
        front = Front(
            fleet=self.fleet,
            model_name="m",
            token=token,
            settings=settings,
            parses_calls=parses_calls,
        )
        self._listener = listen("127.0.0.1", 0)
        self.url = address_of(self._listener)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                front.application(self._lifespan), log_config=None, timeout_graceful_shutdown=2
            )
        )
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [self._listener]}, daemon=True
        )
        self._thread.start()

    def _server(self, folder: Path, index: int, command: list[str] | None) -> ServerCommand:
        socket = folder / f"{index}.sock"
        return ServerCommand(
            command=command or [sys.executable, str(FAKE), str(socket), str(self.notes)],
            environment={},
            socket=socket,
            log=folder / f"{index}.log",
        )

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        async def supervise() -> None:
            try:
                await self.fleet.supervise(lambda: self.reports.append("all ready"))
            except Exception as error:  # noqa: BLE001 - shown by the test
                self.failure = error

        task = asyncio.create_task(supervise())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def wait_until_ready(self) -> Endpoint:
        wait_until(lambda: self.fleet.num_ready == len(self.fleet.replicas), 30)
        return self

    def pids(self) -> list[int | None]:
        return [replica.pid for replica in self.fleet.replicas]

    def ask(
        self,
        text: str,
        *,
        stream: bool = False,
        path: str = "/v1/chat/completions",
        key: str | None = KEY.header,
        body: bytes | None = None,
        model: str = "m",
    ) -> tuple[int, Any]:
        """Status and content: JSON, or the lines of a stream."""
        fields = {
            "model": model,
            "stream": stream,
            "messages": [{"role": "user", "content": text}],
        }
        return self.send("POST", path, json.dumps(fields).encode() if body is None else body, key)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        key: str | None = KEY.header,
        **headers: str,
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(*self._address(), timeout=30)
        try:
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, given | ({"Authorization": key} if key else {}))
            reply = connection.getresponse()
            content_type = reply.headers.get("content-type", "")
            if content_type.startswith("text/event-stream"):
                return reply.status, _events(reply)
            content = reply.read()
            is_json = content_type.startswith("application/json")
            return reply.status, json.loads(content) if is_json else content.decode()
        finally:
            connection.close()

    def _address(self) -> tuple[str, int]:
        return self._listener.getsockname()[:2]

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()


def _events(reply: http.client.HTTPResponse) -> list[str]:
    """Lines of a body; `(broken off)` follows if the body did not come to its end."""
    try:
        content, end = reply.read(), []
    except http.client.IncompleteRead as error:
        content, end = error.partial, ["(broken off)"]
    return [line for line in content.decode().splitlines() if line.strip()] + end


def wait_until(holds: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not after {timeout_s} s"
        time.sleep(0.02)


def assert_comes_back(endpoint: Endpoint) -> None:
    """Check that the endpoint answers again, and that the restart was reported."""
    wait_until(
        lambda: endpoint.fleet.num_ready == 1 and endpoint.fleet.replicas[0].restarts == 1, 20
    )
    assert endpoint.ask("hello again")[1]["choices"][0]["message"]["content"] == "hello again"
