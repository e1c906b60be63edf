"""The same model on a Ray cluster, behind Ray Serve; `make test-slow` installs the extra."""

from __future__ import annotations

import signal
import socket

import openai
import psutil
import pytest

from tests.e2e.served import (
    GREEDY,
    KEY,
    LONG,
    SUMS,
    VARIABLE,
    Served,
    ask_until_answered,
    lives,
    user,
)

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.nightly]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def start(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, KEY)
    started: list[Served] = []

    def start(*overrides: str) -> Served:
        port = f"serve.port={free_port()}"
        started.append(Served(tmp_path / "out", "serve.backend=ray_serve", port, *overrides))
        return started[-1]

    yield start
    for served in started:
        served.end()


def test_on_a_cluster(start):
    served = start()
    url = served.facts()["url"]
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        ask = client.chat.completions.create
        for question, answer in list(SUMS.items())[::25]:
            reply = ask(model="arithmetic", messages=user(question), **GREEDY)
            assert reply.choices[0].message.content == answer
        chunks = list(ask(model="arithmetic", messages=user("hello"), stream=True, **LONG))
        assert len(chunks) > 100, "as it comes, and not all at once"
        with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
            ask(model="other", messages=user("hello"))
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()

        stream = ask(model="arithmetic", messages=user("hello"), stream=True, **LONG)
        next(stream)
        served.engine().kill()
        with pytest.raises(openai.APIError):
            list(stream)
        reply, statuses = ask_until_answered(client, "What is 2+6?", 240)
        assert reply == "8"
        assert statuses <= {502, 503}

    family = served.family()
    assert len(family) > 4
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=120) == 0
    _, alive = psutil.wait_procs(family, timeout=20)
    assert [process for process in alive if lives(process)] == []
    written = [path for path in served.output.rglob("*") if path.is_file()]
    assert all(KEY.encode() not in path.read_bytes() for path in (served.log, *written))
