"""The real command in a real terminal, with a fake OpenAI-compatible server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.unit.chat.terminal import CTRL_C, CTRL_D, REPOSITORY, Terminal
from tests.unit.serving.endpoint import KEY, Endpoint, wait_until

VARIABLE = "RLHF_RAY_TEST_CHAT_KEY"


@pytest.fixture
def fake_server(tmp_path) -> Iterator[Endpoint]:
    endpoint = Endpoint(tmp_path).wait_until_ready()
    yield endpoint
    endpoint.close()


@pytest.fixture
def terminal(fake_server, tmp_path, monkeypatch) -> Iterator[Terminal]:
    monkeypatch.setenv(VARIABLE, KEY.secret)
    url = f"{fake_server.url}/v1"
    terminal = Terminal(
        [
            *(sys.executable, "-m", "rlhf_ray.main", "stage=chat", f"chat.url={url}"),
            *(f"chat.compare_url={url}", f"chat.token_variable={VARIABLE}"),
            f"output_dir={tmp_path / 'out'}",
        ]
    )
    yield terminal
    terminal.close()


@pytest.mark.unit_slow
def test_a_chat(terminal, fake_server):
    terminal.expect("talking to m (1) and m (2)")
    terminal.expect("you> ")
    terminal.type("good morning\n")
    terminal.expect("m (1)> good morning ")
    terminal.expect("you> ")

    # Ctrl-C stops the answer, at the server too, and not the chat.
    terminal.type("endless\n")
    terminal.expect("word word word")
    terminal.type(CTRL_C)
    terminal.expect("(stopped)")
    wait_until(lambda: "taken endless" in fake_server.notes.read_text(), 10)
    terminal.expect("you> ")

    terminal.type("/compare\n")
    terminal.expect("m (1) and m (2) side by side")
    terminal.expect("you> ")
    terminal.type("left and right\n")
    terminal.expect("left and right")
    terminal.expect("you> ")
    both = [
        line for line in fake_server.notes.read_text().splitlines() if line.startswith("begun left")
    ]
    assert both == ["begun left and right"] * 2

    terminal.type("die\n")
    terminal.expect("failed: the engine ended while it answered")
    terminal.expect("you> ")
    terminal.type("half a line" + CTRL_C)
    terminal.expect("(Ctrl-D or /quit ends the chat)")
    terminal.expect("you> ")
    terminal.type(CTRL_D)
    terminal.expect("(ended)")
    assert terminal.process.wait(timeout=20) == 0


@pytest.mark.unit_slow
def test_an_endpoint_that_is_not_there(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "rlhf_ray.main", "stage=chat"),
            *("chat.url=http://127.0.0.1:9/v1", f"output_dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 2
    assert "chat.url=http://127.0.0.1:9/v1: the server cannot be reached" in done.stderr
