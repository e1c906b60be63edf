"""A model served by one command: real answers, a load, a killed engine, an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from rlhf_ray.serving.load import Answered, LoadReport, measure
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
from tests.unit.chat.terminal import CTRL_D, Terminal

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    os.environ[VARIABLE] = KEY
    served = Served(tmp_path_factory.mktemp("serve") / "out", "serve.port=0")
    try:
        served.facts()
        yield served
    finally:
        del os.environ[VARIABLE]
        served.end()


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.facts()["url"], api_key=KEY, max_retries=0) as client:
        yield client


def load(served: Served, prompts: list[str], **settings: Any) -> tuple[LoadReport, list[Answered]]:
    async def run():
        async with openai.AsyncOpenAI(
            base_url=served.facts()["url"], api_key=KEY, max_retries=0
        ) as client:
            return await measure(
                client, model="arithmetic", prompts=prompts, at_once=16, **settings
            )

    return asyncio.run(run())


def test_answers(served, client):
    assert [model.id for model in client.models.list()] == ["arithmetic"]
    ask = client.chat.completions.create
    reply = ask(model="arithmetic", messages=user("What is 3+4?"), **GREEDY)
    assert reply.choices[0].message.content == "7"
    chunks = list(ask(model="arithmetic", messages=user("What is 9+8?"), stream=True, **GREEDY))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "17"
    completed = client.completions.create(model="arithmetic", prompt="What", max_tokens=2)
    assert completed.usage is not None
    assert completed.usage.completion_tokens > 0


def test_wrong_requests(served, client):
    ask = client.chat.completions.create
    hello = user("hello")
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        ask(model="other", messages=hello)
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        ask(model="arithmetic", messages=user("word " * 5000))
    with pytest.raises(openai.BadRequestError):
        ask(model="arithmetic", messages=[{"content": "nobody says it"}])
    with pytest.raises(openai.BadRequestError):
        ask(model="arithmetic", messages=hello, temperature=-1)
    with pytest.raises(openai.BadRequestError, match="out of vocabulary"):
        client.completions.create(model="arithmetic", prompt=[10**6])
    with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
        client.with_options(api_key="wrong").chat.completions.create(
            model="arithmetic", messages=hello
        )
    assert ask(model="arithmetic", messages=hello, **GREEDY).choices


def test_requests_that_would_hold_up_the_others(served, client):
    root = served.facts()["url"].removesuffix("/v1")
    began = time.monotonic()
    reply = httpx.post(
        f"{root}/tokenize",
        json={"prompt": "word " * 3_000_000},
        headers={"Authorization": f"Bearer {KEY}"},
        timeout=30,
    )
    assert (reply.status_code, time.monotonic() - began < 20) == (400, True)
    assert "maximum context length" in reply.json()["error"]["message"]
    ask = client.chat.completions.create
    hello = user("hello")
    with pytest.raises(openai.BadRequestError, match="may ask for 128"):
        ask(model="arithmetic", messages=hello, n=10_000)
    with pytest.raises(openai.BadRequestError, match="the role 'root'"):
        ask(model="arithmetic", messages=[{"role": "root", "content": "hello"}])
    for constraint in ({"grammar": "root ::= ("}, {"regex": "(a"}):
        with pytest.raises(openai.BadRequestError):
            ask(
                model="arithmetic",
                messages=hello,
                extra_body={"structured_outputs": constraint},
            )
    # Followed as far as it goes, or refused; it is no failure of the engine.
    many = {"type": "array", "items": {"type": "string"}, "minItems": 9999, "maxItems": 9999}
    with contextlib.suppress(openai.BadRequestError):
        ask(
            model="arithmetic",
            messages=hello,
            max_tokens=8,
            extra_body={"structured_outputs": {"json": many}},
        )
    several = ask(model="arithmetic", messages=hello, n=4, temperature=1, max_tokens=4)
    assert len(several.choices) == 4
    assert served.metric("rlhf_ray_serve_requests_in_flight") == 0


def test_a_client_that_goes_away_ends_its_generation(served):
    tokens = 'vllm:generation_tokens_total{engine="0"'
    gone = 'rlhf_ray_serve_requests_total{path="/v1/chat/completions",status="499"}'
    before = served.metric(tokens)
    # Not the library's client, which may read a stream to its end when it is closed.
    asked = {"model": "arithmetic", "messages": user("hello"), "stream": True, "temperature": 0}
    asked |= {"max_tokens": LONG["max_tokens"], "ignore_eos": True}
    with httpx.stream(
        "POST",
        f"{served.facts()['url']}/chat/completions",
        json=asked,
        headers={"Authorization": f"Bearer {KEY}"},
    ) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 20
    while served.metric('vllm:num_requests_running{engine="0"') > 0:
        assert time.monotonic() < deadline
    assert served.metric(tokens) - before < LONG["max_tokens"]
    assert served.metric(gone) == 1
    assert served.metric("rlhf_ray_serve_requests_in_flight") == 0


def test_two_hundred_requests(served):
    prompts = [*SUMS, *reversed(SUMS)]
    one_by_one, alone = load(served, list(SUMS)[::10], **GREEDY)
    assert one_by_one.num_failed == 0
    report, answered = load(served, prompts, expected=SUMS, **GREEDY)
    print(json.dumps(report.as_dict()))
    assert (report.num_requests, report.num_failed) == (200, 0)
    assert report.num_wrong <= 10, "the model is right nearly always"
    assert len({one.answer for one in answered}) >= 19
    # And the same as asked alone, right or wrong, whatever was computed beside it.
    together = {one.prompt: one.answer for one in answered}
    assert [one for one in alone if one.answer != together[one.prompt]] == []
    assert 0 < report.latency_s["p50"] <= report.latency_s["p95"] <= report.latency_s["p99"]
    assert report.tokens_per_s > 0
    streamed, _ = load(served, list(SUMS), expected=SUMS, stream=True, **GREEDY)
    assert (streamed.num_failed, streamed.num_wrong) == (0, report.num_wrong // 2)


def test_a_chat_in_a_terminal(served, tmp_path):
    terminal = Terminal(
        [
            *(sys.executable, "-m", "rlhf_ray.main", "stage=chat", f"output_dir={tmp_path}"),
            *(f"chat.url={served.facts()['url']}", f"chat.token_variable={VARIABLE}"),
            *("chat.temperature=0", "chat.max_tokens=8"),
        ]
    )
    try:
        terminal.expect("talking to arithmetic")
        for question, answer in list(SUMS.items())[57:59]:
            terminal.expect("you> ")
            terminal.type(f"/reset\n{question}\n")
            terminal.expect(f"arithmetic> {answer}")
        # Two of these do not fit into what the model can read.
        terminal.expect("you> ")
        terminal.type("/reset\n")
        for expected in ("arithmetic> ", "left out its oldest turns, 1)"):
            terminal.expect("you> ")
            terminal.type(f"{'1' * 600}\n")
            terminal.expect(expected)
        terminal.expect("you> ")
        terminal.type(CTRL_D)
        terminal.expect("(ended)")
        assert terminal.process.wait(timeout=20) == 0
    finally:
        terminal.close()


def test_a_killed_engine_comes_back(served, client):
    """Those who wait get an error, at once; then it answers again, and rightly."""
    engine = served.engine()

    async def killed() -> list[Answered]:
        async with openai.AsyncOpenAI(
            base_url=served.facts()["url"], api_key=KEY, max_retries=0
        ) as asking:
            prompts = list(SUMS)[:8]
            engine.suspend()  # A fast machine would have answered before all 16 are there.
            running = [
                asyncio.create_task(
                    measure(
                        asking,
                        model="arithmetic",
                        prompts=prompts,
                        at_once=8,
                        stream=stream,
                        **LONG,
                    )
                )
                for stream in (False, True)
            ]
            deadline = time.monotonic() + 20
            while served.metric("rlhf_ray_serve_requests_in_flight") < 16:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            engine.kill()
            return [one for _, answered in await asyncio.gather(*running) for one in answered]

    answered = asyncio.run(killed())
    assert [one for one in answered if one.error is None] == []
    assert max(one.seconds for one in answered) < 60
    began = time.monotonic()
    reply, statuses = ask_until_answered(client, "What is 2+6?", 180)
    assert statuses <= {502, 503}
    print(f"answers again after {time.monotonic() - began:.1f} s")
    assert reply == "8"
    assert served.engine().pid != engine.pid
    assert served.metric('rlhf_ray_serve_replica_restarts{replica="0"}') == 1


def test_the_end(served):
    """Runs last: nothing is left over, and the key is in no file."""
    family = served.family()
    assert len(family) >= 2
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(timeout=60) == 0
    assert served.log.read_text().endswith("ended\n")
    assert not (served.output / "serve.json").exists()
    assert [process for process in family if lives(process)] == []
    written = [path for path in served.output.rglob("*") if path.is_file()]
    assert written
    assert all(KEY.encode() not in path.read_bytes() for path in (served.log, *written))
