"""The endpoint in front of fake vLLM servers: statuses, streams, failures, concurrency."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.deploy import ServeConfig, ServeLimitsConfig
from rlhf_ray.serving.front import read_fields
from rlhf_ray.serving.front_metrics import merged
from rlhf_ray.serving.openai_errors import Refused
from tests.unit.serving.endpoint import FAKE, KEY, Endpoint, assert_comes_back, limits, wait_until


class TestStatuses:
    @pytest.mark.parametrize("key", [None, "Bearer wrong", "k3y", "Basic k3y", "Bearer kéy"])
    def test_without_the_key(self, shared, key):
        encoded = key.encode("utf-8").decode("latin-1") if key else None
        status, content = shared.ask("hello", key=encoded)
        assert (status, content["error"]["code"]) == (401, 401)
        assert shared.send("GET", "/metrics", key=encoded)[0] == 401
        assert shared.send("GET", "/v1/models", key=encoded)[0] == 401
        assert shared.send("GET", "/health", key=encoded) == (
            200,
            {"status": "ok", "replicas_ready": 1},
        )
        assert "k3y" not in json.dumps(content)

    def test_another_model(self, shared):
        status, content = shared.ask("hello", model="other")
        assert status == 404
        assert content["error"]["message"] == "the model 'other' is not served here; ask for 'm'"
        assert content["error"]["type"] == "NotFoundError"
        assert shared.send("GET", "/v1/models/other")[0] == 404
        assert shared.send("GET", "/v1/models/m")[1]["id"] == "m"
        assert shared.send("GET", "/v1/models")[1]["data"][0]["id"] == "m"

    def test_tools_without_a_parser(self, shared):
        chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        tools = [{"type": "function", "function": {"name": "search"}}]
        body = json.dumps({**chat, "tools": tools}).encode()
        status, content = shared.send("POST", "/v1/chat/completions", body)
        assert status == 400
        assert "enable_auto_tool_choice" in content["error"]["message"]
        assert "tool_call_parser" in content["error"]["message"]
        as_text = json.dumps({**chat, "tools": tools, "tool_choice": "none"}).encode()
        assert shared.send("POST", "/v1/chat/completions", as_text)[0] == 200

    def test_paths_and_methods_that_are_not_there(self, shared):
        assert shared.send("POST", "/v1/nothing", b"{}")[0] == 404
        status, content = shared.send("GET", "/v1/chat/completions")
        assert (status, content["error"]["type"]) == (405, "MethodNotAllowedError")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b"[1]",
            b'"text"',
            b"\xff\xfe{}",
            b'{"a": NaN}',
            b"[" * 3000,
            b'{"messages": [{"content": "\\ud800"}]}',
        ],
    )
    def test_a_malformed_request(self, shared, body):
        status, content = shared.ask("", body=body)
        assert (status, content["error"]["type"]) == (400, "BadRequestError")

    def test_a_request_that_is_too_long(self, shared):
        status, content = shared.ask("x" * 5000)
        assert status == 413
        assert "serve.max_request_bytes=4,000" in content["error"]["message"]

    def test_a_request_that_never_comes(self, make_endpoint):
        limits_of_requests = ServeLimitsConfig(client_s=0.3)
        endpoint = make_endpoint(settings=ServeConfig(limits=limits_of_requests))
        with open_stream(endpoint, "hello", missing=10) as connection:
            reply = connection.recv(4096)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"serve.limits.client_s=0.3 s" in reply

    def test_refusals_of_the_engine_are_passed_on(self, shared):
        status, content = shared.ask("too long")
        assert status == 400
        assert "maximum context length" in content["error"]["message"]
        status, content = shared.ask("too long", stream=True)
        assert (status, content["error"]["code"]) == (400, 400)

    def test_the_endpoint_goes_on_after_all_these_requests(self, shared):
        assert shared.ask("hello")[1]["choices"][0]["message"]["content"] == "hello"


def test_fields_of_a_body():
    assert read_fields(b'{"a": "\xc3\xa9"}') == {"a": "é"}
    with pytest.raises(Refused, match="not an object"):
        read_fields(b"null")


class TestAnswers:
    def test_a_stream_is_passed_on_as_it_comes(self, shared):
        status, lines = shared.ask("one two three", stream=True)
        assert status == 200
        words = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines[:-1]]
        assert (words, lines[-1]) == (["one ", "two ", "three "], "data: [DONE]")

    def test_the_first_word_does_not_wait_for_the_last(self, shared):
        with open_stream(shared, "endless") as connection:
            began = time.monotonic()
            received = b""
            while b"word" not in received:
                received += connection.recv(4096)
        assert time.monotonic() - began < 5, "all of it takes 100 s"

    def test_nothing_is_mixed_up(self, shared):
        def ask(index: int) -> tuple[str, str]:
            text = " ".join(f"{index}-{word}" for word in range(index % 7 + 1))
            if index % 2:
                return text, shared.ask(text)[1]["choices"][0]["message"]["content"]
            lines = shared.ask(text, stream=True)[1][:-1]
            deltas = [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines]
            return text, "".join(deltas).strip()

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(160)))
        assert len({text for text, _ in answers}) == 160
        assert [(text, answer) for text, answer in answers if text != answer] == []

    @pytest.mark.parametrize("stream", [True, False])
    def test_a_client_that_goes_away_ends_the_generation(self, shared, stream):
        text = "endless" if stream else " ".join(["slow"] * 500)
        before = shared.notes.read_text().count("taken " + text)
        with open_stream(shared, text, stream=stream) as connection:
            wait_until(lambda: f"begun {text}" in shared.notes.read_text(), 10)
            if stream:
                connection.recv(100)
            assert shared.fleet.in_flight == 1
        wait_until(lambda: shared.notes.read_text().count("taken " + text) == before + 1, 10)
        wait_until(lambda: shared.fleet.in_flight == 0, 10)
        assert 'path="/v1/chat/completions",status="499"' in shared.send("GET", "/metrics")[1]

    def test_a_client_that_leaves_at_the_last_event_has_its_answer(self, shared):
        def counts() -> list[str]:
            lines = shared.send("GET", "/metrics")[1].splitlines()
            return [line for line in lines if "requests_total{" in line and "chat" in line]

        def of(status: int) -> float:
            return sum(float(line.split()[-1]) for line in counts() if f'"{status}"' in line)

        answered, gone = of(200), of(499)
        with open_stream(shared, "linger") as connection:
            received = b""
            while b"[DONE]" not in received:
                received += connection.recv(4096)
        wait_until(lambda: shared.fleet.in_flight == 0, 10)
        assert (of(200), of(499)) == (answered + 1, gone)

    def test_metrics(self, shared):
        shared.ask("hello")
        text = shared.send("GET", "/metrics")[1]
        for expected in (
            'rlhf_ray_serve_requests_total{path="/v1/chat/completions",status="200"}',
            'rlhf_ray_serve_request_seconds_count{path="/v1/chat/completions"}',
            "rlhf_ray_serve_replicas_ready 1.0",
            'rlhf_ray_serve_replica_restarts{replica="0"} 0.0',
            'vllm:iteration_tokens_total_count{engine="0",replica="0"}',
        ):
            assert expected in text
        assert "process_open_fds" not in text


def test_metrics_of_several_replicas_are_one_family():
    text = '# HELP vllm:a_total A.\n# TYPE vllm:a_total counter\nvllm:a_total{x="1"} %d\n'
    (family,) = merged([(0, text % 3), (1, text % 4)])
    assert [(s.name, s.labels, s.value) for s in family.samples] == [
        ("vllm:a_total", {"replica": "0", "x": "1"}, 3.0),
        ("vllm:a_total", {"replica": "1", "x": "1"}, 4.0),
    ]


@pytest.mark.unit_slow
class TestDeaths:
    def test_in_mid_stream(self, make_endpoint):
        endpoint = make_endpoint().wait_until_ready()
        first = endpoint.pids()
        status, lines = endpoint.ask("one two die four", stream=True)
        assert status == 200
        assert [line.startswith("data: ") for line in lines] == [True, True, True, False]
        error = json.loads(lines[2][6:])["error"]
        assert (error["code"], "ended while it answered" in error["message"]) == (502, True)
        assert lines[3] == "(broken off)"
        assert_comes_back(endpoint)
        assert endpoint.pids() != first
        assert any("ended with status 3; starting it again (1 of" in r for r in endpoint.reports)

    def test_a_stream_without_its_end_is_no_answer(self, make_endpoint):
        endpoint = make_endpoint().wait_until_ready()
        lines = endpoint.ask("one stop-early", stream=True)[1]
        assert json.loads(lines[1][6:])["error"]["code"] == 502
        assert lines[2] == "(broken off)"
        assert endpoint.fleet.num_ready == 1

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
    def test_by_a_signal(self, make_endpoint, number):
        """Killed or stopped: waiting clients get an error, and later ones get answers."""
        endpoint = make_endpoint().wait_until_ready()
        with ThreadPoolExecutor(4) as pool:
            text = " ".join(["slow"] * 500)
            waiting = [pool.submit(endpoint.ask, text, stream=s) for s in (False, False, True)]
            wait_until(lambda: endpoint.fleet.in_flight == 3, 10)
            wait_until(lambda: "spoken" in endpoint.notes.read_text(), 10)
            time.sleep(0.3)  # And has come.
            (pid,) = endpoint.pids()
            os.kill(pid, number)
            results = [future.result(timeout=20) for future in waiting]
        assert [status for status, _ in results] == [502, 502, 200]
        assert results[0][1]["error"]["code"] == 502
        assert results[2][1][-1] == "(broken off)"
        assert '"code": 502' in results[2][1][-2]
        assert_comes_back(endpoint)
        words = "was ended by SIGKILL" if number is signal.SIGKILL else "does not answer"
        assert any(words in line for line in endpoint.reports)
        assert not psutil.pid_exists(pid)
        assert 'replica_restarts{replica="0"} 1.0' in endpoint.send("GET", "/metrics")[1]

    def test_an_engine_that_fails_is_checked_at_once(self, make_endpoint):
        endpoint = make_endpoint(given=limits(every_s=60)).wait_until_ready()
        status, content = endpoint.ask("break")
        assert status == 502
        assert content["error"]["message"] == "the engine failed: engine is dead"
        assert_comes_back(endpoint)
        assert any("not healthy (HTTP status 503)" in line for line in endpoint.reports)

    def test_an_engine_without_progress(self, make_endpoint):
        """The server answers /health, but its engine makes no steps."""
        endpoint = make_endpoint(given=limits(stall_s=1.0)).wait_until_ready()
        time.sleep(1.5)
        assert endpoint.reports[-1] == "all ready", "idle is not stalled"
        assert endpoint.ask(" ".join(["slow"] * 150))[0] == 200
        assert endpoint.reports[-1] == "all ready", "slow is not stalled"
        assert endpoint.ask("stall")[0] == 502
        assert_comes_back(endpoint)
        assert any("made no step for 1 s with requests in flight" in r for r in endpoint.reports)

    def test_another_replica_answers(self, make_endpoint):
        endpoint = make_endpoint(num_replicas=2).wait_until_ready()
        os.kill(endpoint.pids()[0], signal.SIGKILL)
        wait_until(lambda: endpoint.fleet.num_ready == 1, 10)
        answers = [endpoint.ask(f"hello {index}")[0] for index in range(30)]
        assert answers == [200] * 30
        assert endpoint.send("GET", "/health")[0] == 200

    def test_a_replica_that_cannot_be_reached(self, make_endpoint, tmp_path):
        """A request that no replica has received goes to another replica."""
        endpoint = make_endpoint(num_replicas=2, given=limits(every_s=60)).wait_until_ready()
        (tmp_path / "0.sock").unlink()
        assert [endpoint.ask(f"hello {index}")[0] for index in range(10)] == [200] * 10
        wait_until(lambda: endpoint.fleet.replicas[0].restarts == 1, 10)

    def test_too_often(self, make_endpoint):
        endpoint = make_endpoint(given=limits(max_restarts=1)).wait_until_ready()
        for _ in range(2):
            wait_until(lambda: endpoint.fleet.num_ready == 1, 20)
            endpoint.ask("die", stream=True)
            wait_until(lambda: endpoint.fleet.num_ready == 0, 20)
        wait_until(lambda: endpoint.failure is not None, 20)
        assert isinstance(endpoint.failure, RunFailed)
        assert "for the 2th time within" in str(endpoint.failure)
        assert endpoint.send("GET", "/health")[1]["status"] == "failed"

    def test_the_first_start_is_not_tried_again(self, make_endpoint):
        program = "import sys; print('no such weights'); sys.exit(5)"
        endpoint = make_endpoint(command=[sys.executable, "-c", program])
        wait_until(lambda: endpoint.failure is not None, 20)
        assert isinstance(endpoint.failure, RunFailed)
        assert "ended with status 5 while it started" in str(endpoint.failure)
        assert "no such weights" in str(endpoint.failure)

    def test_a_start_that_is_refused(self, make_endpoint):
        program = "import sys; print('refused: no argument x'); sys.exit(2)"
        endpoint = make_endpoint(command=[sys.executable, "-c", program])
        wait_until(lambda: endpoint.failure is not None, 20)
        assert isinstance(endpoint.failure, RequestError)
        assert str(endpoint.failure) == "no argument x"

    def test_answers_sampled_from_nan_are_told(self, make_endpoint):
        endpoint = make_endpoint().wait_until_ready()
        assert endpoint.ask("overflow")[0] == 200
        wait_until(lambda: any("1 answers are garbage" in line for line in endpoint.reports), 10)
        assert endpoint.fleet.num_ready == 1

    def test_a_model_that_computes_nothing_but_nan_is_refused(self, make_endpoint, tmp_path):
        server = [sys.executable, str(FAKE), str(tmp_path / "0.sock"), str(tmp_path / "notes")]
        damaged = make_endpoint(command=[*server, "damaged"])
        wait_until(lambda: damaged.failure is not None, 20)
        assert isinstance(damaged.failure, RequestError)
        assert "computes NaN for a short text" in str(damaged.failure)

    def test_a_start_that_takes_too_long(self, make_endpoint):
        sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
        endpoint = make_endpoint(command=sleeper, given=limits(start_s=1.0))
        wait_until(lambda: endpoint.pids() != [None], 20)
        status, content = endpoint.ask("hello")
        assert (status, content["error"]["type"]) == (503, "ServiceUnavailableError")
        (pid,) = endpoint.pids()
        wait_until(lambda: endpoint.failure is not None, 20)
        assert "was not ready after deadlines.start_s=1 s" in str(endpoint.failure)
        assert not psutil.pid_exists(pid)


@pytest.mark.unit_slow
def test_requests_in_flight_are_limited(make_endpoint):
    endpoint = make_endpoint(max_in_flight=2).wait_until_ready()
    with ThreadPoolExecutor(2) as pool:
        slow = [pool.submit(endpoint.ask, " ".join(["slow"] * 100)) for _ in range(2)]
        wait_until(lambda: endpoint.fleet.in_flight == 2, 10)
        status, content = endpoint.ask("hello")
        assert (status, "2 requests are in flight" in content["error"]["message"]) == (503, True)
        assert [future.result()[0] for future in slow] == [200, 200]
    assert endpoint.ask("hello")[0] == 200


@pytest.mark.unit_slow
def test_the_end_leaves_no_process(make_endpoint):
    endpoint = make_endpoint(num_replicas=2).wait_until_ready()
    pids = endpoint.pids()
    endpoint.close()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def open_stream(
    endpoint: Endpoint, text: str, *, stream: bool = True, missing: int = 0
) -> socket.socket:
    """A connection that has sent a request; closing it is how a client goes away."""
    body = json.dumps(
        {"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}
    )
    host, _, port = endpoint.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {KEY.header}\r\n"
        f"Content-Length: {len(body) + missing}\r\n\r\n{body}".encode()
    )
    return connection
