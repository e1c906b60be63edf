"""The service over a real socket: statuses, and the scorer of a run as its client."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import uvicorn

from rlhf_ray.config.bearer_token import BearerToken
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.deploy import ServeConfig, ServeLimitsConfig
from rlhf_ray.config.groups.reward import HttpRewardConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.http.scorer import HttpScorer, ask_health
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.serving.server import address_of, listen
from rlhf_ray.serving.service import ScoreService, pieces
from tests.unit.rewards.conftest import build_group
from tests.unit.serving.endpoint import wait_until

TOKEN = BearerToken("t0ken")
CHAT = [{"role": "user", "content": "hello"}]
GOOD = {"messages": CHAT, "responses": ["abc", "abcd"]}


class Lengths:
    """Scores are lengths. An empty response has no score; the response "crash" raises.

    The response "wait" is scored when `free` is set.
    """

    max_tokens = 100

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.free = threading.Event()

    def score_texts(
        self,
        messages: Sequence[Any],
        answers: Sequence[str],
        finish_reasons: Sequence[str],
        *,
        tools: Sequence[Any],
    ) -> list[float | ItemFailure]:
        self.asked.append((messages, answers, finish_reasons))
        self.tools = tools
        if "wait" in answers:
            self.free.wait(30)
        if "crash" in answers:
            raise RuntimeError("out of memory")
        nothing = ItemFailure(kind=FailureKind.REWARD_ERROR, message="it is empty")
        return [float(len(answer)) if answer else nothing for answer in answers]


class Started:
    """A service that runs in a thread."""

    def __init__(
        self, settings: ServeConfig | None = None, token: BearerToken | None = TOKEN
    ) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.service = ScoreService(
            facts={"model": "m", "fingerprint": "f"},
            executor=self.executor,
            token=token,
            settings=settings or ServeConfig(max_request_bytes=3000),
        )
        self.scorer = Lengths()
        listener = listen("127.0.0.1", 0)
        self.url = address_of(listener)
        config = uvicorn.Config(self.service.application(), log_config=None)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, daemon=True
        )
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self.executor.shutdown()

    def ask(
        self,
        body: Any = None,
        *,
        path: str = "/score",
        token: str | None = TOKEN.header,
        **headers: str,
    ) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the reply."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=None if body is None else data)
        if token is not None:
            request.add_header("Authorization", token)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, json.load(reply), reply.headers
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), error.headers


@pytest.fixture(scope="module")
def starting() -> Iterator[Started]:
    started = Started()
    yield started
    started.close()


@pytest.fixture(scope="module")
def started(starting: Started) -> Started:
    starting.service.begin(starting.scorer)
    return starting


class TestBefore:
    """Runs first: in later tests the model is loaded."""

    @pytest.mark.parametrize("path", ["/health", "/score"])
    def test_starting(self, starting, path):
        status, reply, headers = starting.ask(None if path == "/health" else GOOD, path=path)
        assert (status, reply) == (503, {"error": "the model is being loaded"})
        assert headers["Retry-After"] == "2"


class TestReplies:
    def test_scores(self, started):
        body = {**GOOD, "finish_reasons": ["stop", "length"], "answer": None, "task": "t"}
        assert started.ask(body)[:2] == (200, {"scores": [3.0, 4.0]})
        assert started.scorer.asked[-1] == (CHAT, ["abc", "abcd"], ["stop", "length"])

    def test_a_plain_prompt_is_a_message_of_the_user(self, started):
        assert started.ask({"prompt": "hello", "messages": [], "responses": ["a"]})[0] == 200
        assert started.scorer.asked[-1] == (CHAT, ["a"], ["stop"])

    def test_tools_and_calls_of_the_prompt(self, started):
        call = {"name": "add", "arguments": '{"a": 1}'}
        chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [{"function": call}]}]
        chat.append({"role": "tool", "content": "2"})
        body = {"messages": chat, "responses": ["a"], "tools": [{"name": "add"}]}
        assert started.ask(body)[0] == 200
        assert started.scorer.tools == [{"type": "function", "function": {"name": "add"}}]
        ((_, message, _), _, _) = started.scorer.asked[-1]
        assert message["content"] == ""
        assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1}
        status, reply, _ = started.ask({**body, "tools": [{"type": "web_search"}]})
        assert status == 422
        assert "tool 1" in reply["error"]

    def test_a_response_without_a_score(self, started):
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["", "a"]})
        assert status == 200
        assert reply == {"scores": [None, 1.0], "errors": ["it is empty", None]}

    def test_health(self, started):
        assert started.ask(path="/health")[:2] == (
            200,
            {"status": "ok", "model": "m", "fingerprint": "f"},
        )


class TestRefusals:
    """Bad requests, each followed by a good one: the service goes on."""

    @pytest.fixture(autouse=True)
    def goes_on(self, started):
        yield
        assert started.ask(GOOD)[:2] == (200, {"scores": [3.0, 4.0]})

    @pytest.mark.parametrize("token", [None, "Bearer wrong", "t0ken", "Basic dDBrZW4="])
    @pytest.mark.parametrize("path", ["/health", "/score"])
    def test_token(self, started, path, token):
        body = None if path == "/health" else GOOD
        status, reply, headers = started.ask(body, path=path, token=token)
        assert status == 401
        assert "token" in reply["error"]
        assert headers["WWW-Authenticate"] == "Bearer"

    @pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 1900, b"nonsense"])
    def test_not_json(self, started, body):
        status, reply, _ = started.ask(body)
        assert status == 400
        assert "not JSON" in reply["error"]

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            ([], "the request"),
            ({}, "responses: Field required"),
            ({"messages": CHAT, "responses": []}, "responses"),
            ({"messages": CHAT, "responses": [1]}, "responses.0"),
            ({"messages": CHAT, "responses": "abc"}, "responses"),
            ({"responses": ["a"]}, "neither `messages` nor a `prompt`"),
            ({"prompt": " ", "responses": ["a"]}, "neither `messages` nor a `prompt`"),
            ({"messages": [{"role": "user"}], "responses": ["a"]}, "has no 'content'"),
            (
                {"messages": [{"role": "assistant", "content": "x"}], "responses": ["a"]},
                "ends with a message of the assistant",
            ),
            ({**GOOD, "finish_reasons": ["stop"]}, "1 entries for 2 responses"),
            ({**GOOD, "finish_reasons": ["stop", "why"]}, "'why'"),
            ({"messages": CHAT, "responses": ["\ud800"]}, "surrogates not allowed"),
        ],
    )
    def test_wrong_fields(self, started, body, words):
        status, reply, _ = started.ask(body)
        assert status == 422
        assert words in reply["error"]

    def test_too_long(self, started):
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["a" * 3000]})
        assert status == 413
        assert "serve.max_request_bytes=3,000" in reply["error"]

    def test_path_and_method(self, started):
        assert started.ask(path="/nothing")[0] == 404
        assert started.ask(path="/score")[0] == 405

    def test_a_model_that_fails(self, started):
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["crash"]})
        assert (status, reply) == (500, {"error": "RuntimeError: out of memory"})


@pytest.fixture
def make_service() -> Iterator[Any]:
    made: list[Started] = []

    def make(token: BearerToken | None = TOKEN, **limits: Any) -> Started:
        settings = ServeConfig(limits=ServeLimitsConfig(**limits), max_requests_under_way=2)
        made.append(Started(settings, token))
        made[-1].service.begin(made[-1].scorer)
        return made[-1]

    yield make
    for started in made:
        started.scorer.free.set()
        started.close()


class TestLimits:
    def test_a_response_that_no_context_holds(self, started):
        """The model reads 100 tokens; the other response has its score."""
        num_asked = len(started.scorer.asked)
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["a" * 1700, "abc"]})
        assert (status, reply["scores"]) == (200, [None, 3.0])
        assert "more than 1,600 characters" in reply["errors"][0]
        assert [responses for _, responses, _ in started.scorer.asked[num_asked:]] == [["abc"]]

    def test_a_prompt_that_no_context_holds(self, started):
        num_asked = len(started.scorer.asked)
        reply = started.ask({"prompt": "x" * 1700, "responses": ["a", "b"]})[1]
        assert reply["scores"] == [None, None]
        assert len(started.scorer.asked) == num_asked, "no tokenizer has seen it"

    def test_a_limit_that_is_configured(self, make_service):
        started = make_service(prompt_characters=50)
        reply = started.ask({"prompt": "x" * 10, "responses": ["a" * 40, "a"]})[1]
        assert reply["scores"] == [None, 1.0]
        assert "50 characters" in reply["errors"][0]

    def test_many_responses(self, make_service):
        started = make_service(responses=5)
        assert started.ask({"prompt": "a", "responses": ["a"] * 5})[0] == 200
        status, reply, _ = started.ask({"prompt": "a", "responses": ["a"] * 6})
        assert status == 422
        assert "6 responses, more than serve.limits.responses=5" in reply["error"]

    def test_many_messages(self, make_service):
        chat = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(7)]
        status, reply, _ = make_service(prompt_parts=6).ask({"messages": chat, "responses": ["a"]})
        assert status == 422
        assert "7 messages, more than serve.limits.prompt_parts=6" in reply["error"]

    def test_a_request_is_scored_in_pieces(self, make_service):
        started = make_service()
        responses = ["a" * (index % 9) for index in range(200)]
        reply = started.ask({"prompt": "a", "responses": responses})[1]
        assert reply["scores"] == [float(len(text)) if text else None for text in responses]
        assert [len(piece) for _, piece, _ in started.scorer.asked] == [64, 64, 64, 8]

    def test_a_piece_has_a_limit_of_characters(self):
        found = list(pieces(dict.fromkeys(range(7), 200_000) | {7: 900_000, 8: 1}))
        assert found == [[0, 1], [2, 3], [4, 5], [6], [7], [8]]

    def test_another_request_has_its_turn_between_two_pieces(self, make_service):
        started = make_service()
        with ThreadPoolExecutor(2) as pool:
            long = pool.submit(started.ask, {"prompt": "l", "responses": ["wait", *["a"] * 99]})
            wait_until(lambda: len(started.scorer.asked) == 1, 10)
            short = pool.submit(started.ask, {"prompt": "s", "responses": ["b"]})
            wait_until(lambda: started.service.num_under_way == 2, 10)
            time.sleep(0.5)  # And its body has come.
            started.scorer.free.set()
            assert (long.result()[0], short.result()[0]) == (200, 200)
        asked = [messages[0]["content"] for messages, _, _ in started.scorer.asked]
        assert asked == ["l", "s", "l"]

    def test_a_client_that_has_gone_is_given_up(self, make_service, caplog):
        started = make_service()
        body = json.dumps({"prompt": "p", "responses": ["wait", *["a"] * 999]})
        with send(started, body):
            wait_until(lambda: len(started.scorer.asked) == 1, 10)
        time.sleep(0.1)
        started.scorer.free.set()
        assert started.ask(GOOD)[0] == 200
        wait_until(lambda: started.service.num_under_way == 0, 10)
        assert [len(piece) for _, piece, _ in started.scorer.asked] == [64, 2]
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    def test_a_client_that_goes_within_its_request_is_no_error(self, make_service, caplog):
        started = make_service()
        with send(started, json.dumps(GOOD), missing=100):
            wait_until(lambda: started.service.num_under_way == 1, 10)
        wait_until(lambda: started.service.num_under_way == 0, 10)
        assert started.ask(GOOD)[0] == 200
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    def test_a_body_that_never_comes(self, make_service):
        started = make_service(client_s=0.3)
        with send(started, json.dumps(GOOD), missing=100) as connection:
            reply = connection.recv(4096)
        assert reply.startswith(b"HTTP/1.1 408 ")
        assert b"serve.limits.client_s=0.3 s" in reply

    def test_requests_in_flight(self, make_service):
        started = make_service()
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(started.ask, {"prompt": "l", "responses": ["wait"]}) for _ in "ab"]
            wait_until(lambda: started.service.num_under_way == 2, 10)
            status, reply, headers = started.ask(GOOD)
            assert (status, headers["Retry-After"]) == (503, "2")
            assert "2 requests are in flight" in reply["error"]
            started.scorer.free.set()
            assert [one.result()[0] for one in asked] == [200, 200]
        assert started.ask(GOOD)[0] == 200

    def test_scores_that_take_too_long(self, make_service):
        started = make_service(answer_s=0.3)
        status, reply, _ = started.ask({"prompt": "l", "responses": ["wait"]})
        assert status == 504
        assert "serve.limits.answer_s=0.3 s" in reply["error"]
        started.scorer.free.set()
        assert started.ask(GOOD)[0] == 200


class TestWithoutAToken:
    """A web page in a browser of this machine must not get through."""

    def test_a_name_that_points_here(self, make_service):
        started = make_service(token=None)
        for path, body in (("/health", None), ("/score", GOOD)):
            status, reply, _ = started.ask(body, path=path, token=None, Host="evil.com:8000")
            assert status == 403
            assert "Host is 'evil.com:8000'" in reply["error"]
        assert started.ask(path="/health", token=None)[0] == 200

    def test_content_that_a_form_can_send(self, make_service):
        started = make_service(token=None)
        assert started.ask(GOOD, token=None)[0] == 415, "urllib's default is that of a form"
        assert started.ask(GOOD, token=None, Content_Type="text/plain")[0] == 415
        assert started.ask(GOOD, token=None, Content_Type="application/json")[0] == 200


class TestWithTheScorerOfARun:
    """Both ends of the protocol."""

    settings = HttpRewardConfig(max_retries=0)

    def outcomes(self, url: str, token: BearerToken | None, *responses: str) -> list[Any]:
        group = build_group(*responses)
        group = replace(group, prompt=replace(group.prompt, messages=tuple(CHAT)))

        async def ask() -> list[Any]:
            scorer = HttpScorer(url=url, http=self.settings, token=token)
            try:
                return list(await scorer.score(group))
            finally:
                await scorer.close()

        return asyncio.run(ask())

    def test_scores(self, started):
        first, second, third = self.outcomes(started.url, TOKEN, "abc", "", "ä" * 7)
        assert (first, third) == (3.0, 7.0)
        assert second.message == "the service: it is empty"
        assert started.scorer.asked[-1] == (CHAT, ["abc", "", "ä" * 7], ["stop", "length", "stop"])

    def test_refusal(self, started):
        (outcome,) = self.outcomes(started.url, None, "abc")
        assert "status 401: the bearer token is missing or wrong" in outcome.message

    def test_health(self, started):
        said = asyncio.run(ask_health(started.url, self.settings, TOKEN))
        assert said["fingerprint"] == "f"


def send(started: Started, body: str, *, missing: int = 0) -> socket.socket:
    """A connection that has sent a request; closing it is how a client goes away."""
    host, _, port = started.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=20)
    connection.sendall(
        f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: {TOKEN.header}\r\n"
        f"Content-Length: {len(body) + missing}\r\n\r\n{body}".encode()
    )
    return connection


def test_a_port_in_use_is_refused():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(RequestError, match=rf"serve\.port={port}: cannot listen there"):
            listen("127.0.0.1", port)
