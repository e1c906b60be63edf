"""The service over a real socket: statuses, and the scorer of a run as its client."""

from __future__ import annotations

import asyncio
import json
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
from rlhf_ray.config.groups.reward import HttpRewardConfig
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.http.scorer import HttpScorer, ask_health
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.serving.server import address_of, listen
from rlhf_ray.serving.service import ScoreService
from tests.unit.rewards.conftest import build_group

TOKEN = BearerToken("t0ken")
CHAT = [{"role": "user", "content": "hello"}]
GOOD = {"messages": CHAT, "responses": ["abc", "abcd"]}


class Lengths:
    """Scores are lengths. An empty response has no score; the response "crash" raises."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

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
        if "crash" in answers:
            raise RuntimeError("out of memory")
        nothing = ItemFailure(kind=FailureKind.REWARD_ERROR, message="it is empty")
        return [float(len(answer)) if answer else nothing for answer in answers]


class Started:
    """A service that runs in a thread."""

    def __init__(self) -> None:
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.service = ScoreService(
            facts={"model": "m", "fingerprint": "f"},
            executor=self.executor,
            token=TOKEN,
            max_request_bytes=2000,
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
        self, body: Any = None, *, path: str = "/score", token: str | None = TOKEN.header
    ) -> tuple[int, Any, Any]:
        """Status, JSON and headers of the reply."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=None if body is None else data)
        if token is not None:
            request.add_header("Authorization", token)
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
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["a" * 2000]})
        assert status == 413
        assert "serve.max_request_bytes=2,000" in reply["error"]

    def test_path_and_method(self, started):
        assert started.ask(path="/nothing")[0] == 404
        assert started.ask(path="/score")[0] == 405

    def test_a_model_that_fails(self, started):
        status, reply, _ = started.ask({"messages": CHAT, "responses": ["crash"]})
        assert (status, reply) == (500, {"error": "RuntimeError: out of memory"})


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


def test_a_port_in_use_is_refused():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(RequestError, match=rf"serve\.port={port}: cannot listen there"):
            listen("127.0.0.1", port)
