"""A service with replies chosen by the test; it records its requests."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Reply:
    """One reply: JSON or raw bytes, after a delay."""

    def __init__(
        self, content: Any, status: int = 200, *, after_s: float = 0.0, **headers: str
    ) -> None:
        self.content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.status, self.after_s, self.headers = status, after_s, headers


# Instead of a reply: the connection is closed.
HANG_UP = None


class FakeService:
    """Gives its replies one after the other, and repeats the last one."""

    def __init__(self, *replies: Reply | None) -> None:
        self.replies = list(replies)
        self.requests: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        # `close` waits until the server looks again whether it should end.
        serve = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        serve.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _next(self) -> Reply | None:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                service.requests.append(
                    {
                        "at": time.monotonic(),
                        "path": self.path,
                        "token": self.headers.get("Authorization"),
                        "body": json.loads(body) if body else None,
                    }
                )
                reply = service._next()
                if reply is None:
                    self.close_connection = True
                    return
                time.sleep(reply.after_s)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(reply.content)))
                # A client that gave up is no fault of the service, and no traceback.
                with contextlib.suppress(ConnectionError):
                    self.end_headers()
                    self.wfile.write(reply.content)

            do_GET = do_POST = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        return Handler
