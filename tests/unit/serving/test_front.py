"""The endpoint in front of fake vLLM servers: statuses, streams, failures, concurrency."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from rlhf_ray.config.errors import RequestError, RunFailed
from rlhf_ray.config.groups.deploy import ServeConfig, ServeLimitsConfig
from rlhf_ray.serving.front import read_fields
from rlhf_ray.serving.front_metrics import merged
from rlhf_ray.serving.openai_errors import Refused
from rlhf_ray.serving.request_limits import check_size
from tests.unit.serving.endpoint import KEY, Endpoint, limits, wait_until


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


class TestLimits:
    """Requests that would hold up the others; none of them reaches the engine."""

    @pytest.fixture(autouse=True)
    def nothing_is_asked(self, shared):
        before = shared.notes.read_text()
        yield
        assert shared.notes.read_text() == before

    def refused(self, shared, fields, path="/v1/chat/completions") -> str:
        body = json.dumps({"model": "m", **fields}).encode()
        status, content = shared.ask("", path=path, body=body)
        assert (status, content["error"]["type"]) == (400, "BadRequestError")
        return content["error"]["message"]

    @pytest.mark.parametrize("path", ["/tokenize", "/v1/completions"])
    def test_a_text_that_no_context_holds(self, shared, path):
        """The server tells a context of 200 tokens."""
        said = self.refused(shared, {"prompt": "x" * 3300}, path)
        assert "more than 3,200 characters" in said
        assert "serve.limits.prompt_characters" in said

    def test_token_ids(self, shared):
        assert "3,200" in self.refused(shared, {"tokens": [1] * 250}, "/detokenize")
        assert "3,200" in self.refused(shared, {"prompt": [[1] * 250]}, "/v1/completions")

    def test_a_chat(self, shared):
        chat = [{"role": "user", "content": "x" * 1500}] * 2
        assert "3,200" in self.refused(shared, {"messages": chat, "tools": [{"a": "x" * 300}]})

    @pytest.mark.parametrize("fields", [{"n": 129}, {"best_of": 129}, {"n": 10000}])
    def test_answers(self, shared, fields):
        said = self.refused(shared, {"messages": [{"role": "user", "content": "a"}], **fields})
        assert "may ask for 64: the smaller of serve.limits.answers=128" in said
        assert "serve.max_requests_under_way=64" in said

    def test_answers_to_several_prompts(self, shared):
        said = self.refused(shared, {"prompt": ["a"] * 33, "n": 2}, "/v1/completions")
        assert "66 answers (33 prompts, n=2)" in said

    def test_a_role(self, shared):
        said = self.refused(shared, {"messages": [{"role": "root", "content": "a"}]})
        assert "messages[0] has the role 'root'" in said
        assert "serve.roles" in said


def test_a_text_that_fits_is_tokenized(shared):
    assert shared.ask("", path="/tokenize", body=b'{"prompt": "%s"}' % (b"x" * 3100))[0] == 200
    assert shared.notes.read_text().splitlines()[-1] == "tokenized 3100"


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


def test_several_answers_count_as_several_requests(make_endpoint):
    endpoint = make_endpoint(max_in_flight=4).wait_until_ready()
    chat = {"messages": [{"role": "user", "content": " ".join(["slow"] * 100)}], "n": 3}
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(endpoint.ask, "", body=json.dumps(chat).encode())
        wait_until(lambda: endpoint.fleet.in_flight == 3, 10)
        status, content = endpoint.ask("", body=json.dumps({**chat, "n": 2}).encode())
        assert status == 503
        assert "3 requests are in flight, and 2 more" in content["error"]["message"]
        assert endpoint.ask("hello")[0] == 200
        assert slow.result()[0] == 200
    assert endpoint.fleet.in_flight == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_takes_too_long(make_endpoint, stream):
    settings = ServeConfig(limits=ServeLimitsConfig(answer_s=0.5))
    endpoint = make_endpoint(settings=settings).wait_until_ready()
    status, content = endpoint.ask("endless" if stream else "stall", stream=stream)
    if stream:
        assert (status, content[-1]) == (200, "(broken off)")
        assert json.loads(content[-2][6:])["error"]["code"] == 504
    else:
        assert status == 504
        assert "longer than serve.limits.answer_s=0.5 s" in content["error"]["message"]
    wait_until(lambda: endpoint.fleet.in_flight == 0, 10)


class TestGrammars:
    """vLLM answers 500 when a grammar does not compile; its engine goes on."""

    def ask(self, endpoint, text, **fields):
        chat = {"messages": [{"role": "user", "content": text}], **fields}
        return endpoint.ask("", body=json.dumps(chat).encode())

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("structured_outputs", {"grammar": "root ::= ("}),
            ("response_format", {"type": "json_schema", "json_schema": {"maxItems": 9999}}),
            ("tool_choice", "required"),
        ],
    )
    def test_a_grammar_that_fails_is_the_request_at_fault(self, shared, name, value):
        status, content = self.ask(shared, "no grammar", **{name: value})
        assert (status, content["error"]["type"]) == (400, "BadRequestError")
        assert f"the engine cannot follow {name} of the request" in content["error"]["message"]

    @pytest.mark.parametrize(
        "fields", [{}, {"response_format": {"type": "text"}}, {"tool_choice": "auto"}]
    )
    def test_without_a_grammar_it_is_the_engine(self, shared, fields):
        assert self.ask(shared, "no grammar", **fields)[0] == 502

    def test_an_engine_that_dies_of_a_grammar(self, make_endpoint):
        endpoint = make_endpoint().wait_until_ready()
        assert self.ask(endpoint, "break", structured_outputs={"regex": "a"})[0] == 502
        assert_comes_back(endpoint)

    def test_a_grammar_that_is_too_large(self, shared):
        assert self.ask(shared, "a", structured_outputs={"choice": ["a"] * 500})[0] == 200
        settings = ServeLimitsConfig(field_items=100, field_characters=200)
        for value, key in (({"choice": [""] * 200}, "items"), ({"regex": "a" * 300}, "characters")):
            with pytest.raises(Refused, match=rf"'x' has more than serve\.limits\.field_{key}="):
                check_size({"x": value}, settings, context_tokens=None, max_requests=9)


class TestWithoutAKey:
    """A web page in a browser of this machine must not get through."""

    @pytest.fixture(scope="class")
    def own(self, tmp_path_factory) -> Iterator[Endpoint]:
        endpoint = Endpoint(tmp_path_factory.mktemp("own"), token=None).wait_until_ready()
        yield endpoint
        endpoint.close()

    @pytest.mark.parametrize("host", ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "[::2]"])
    def test_a_name_that_points_here(self, own, host):
        for method, path in (("GET", "/v1/models"), ("GET", "/health"), ("POST", "/tokenize")):
            status, content = own.send(method, path, b"{}", None, Host=host)
            assert (status, content["error"]["type"]) == (403, "PermissionDeniedError")
        assert f"the header Host is '{host}'" in content["error"]["message"]

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8000", "[::1]:8000", "LOCALHOST"])
    def test_own_names(self, own, host):
        assert own.send("GET", "/v1/models", None, None, Host=host)[0] == 200

    @pytest.mark.parametrize(
        "content_type",
        ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"],
    )
    def test_content_that_a_form_can_send(self, own, content_type):
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
        given = {"Content_Type": content_type} if content_type else {}
        status, content = own.send("POST", "/v1/chat/completions", body, None, **given)
        assert (status, content["error"]["type"]) == (415, "UnsupportedMediaTypeError")
        assert "hello" not in own.notes.read_text()
        json_type = "application/json; charset=utf-8"
        assert (
            own.send("POST", "/v1/chat/completions", body, None, Content_Type=json_type)[0] == 200
        )
        own.notes.write_text("")

    def test_a_browser_gets_no_permission(self, own):
        """The preflight of a page elsewhere."""
        asked = {"Origin": "http://evil.com", "Access_Control_Request_Method": "POST"}
        assert own.send("OPTIONS", "/v1/chat/completions", None, None, **asked)[0] == 405

    def test_with_a_key_the_key_is_enough(self, shared):
        body = b'{"messages": [{"role": "user", "content": "hello"}]}'
        assert shared.send("POST", "/v1/chat/completions", body, Host="proxy.example")[0] == 200


@pytest.mark.unit_slow
def test_the_end_leaves_no_process(make_endpoint):
    endpoint = make_endpoint(num_replicas=2).wait_until_ready()
    pids = endpoint.pids()
    endpoint.close()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


def assert_comes_back(endpoint: Endpoint) -> None:
    """Check that the endpoint answers again, and that the restart was reported."""
    wait_until(
        lambda: endpoint.fleet.num_ready == 1 and endpoint.fleet.replicas[0].restarts == 1, 20
    )
    assert endpoint.ask("hello again")[1]["choices"][0]["message"]["content"] == "hello again"


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
