"""The scorer that asks a service: requests, retries, and replies that are not scores."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
import torch

from rlhf_ray.cluster.roles.http_reward import check_service
from rlhf_ray.cluster.roles.rewards import ScoringContext
from rlhf_ray.config.bearer_token import BearerToken, read_token
from rlhf_ray.config.errors import RequestError
from rlhf_ray.config.groups.generation import GenerationConfig
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.reward import HttpRewardConfig, RewardConfig
from rlhf_ray.data.prompts.load import PromptSet
from rlhf_ray.records import FailureKind, RolloutGroup
from rlhf_ray.rewards.http.messages import request_of
from rlhf_ray.rewards.http.scorer import HttpScorer
from rlhf_ray.rewards.scorer import scored_by_async
from tests.unit.rewards.conftest import build_group
from tests.unit.rewards.fake_service import HANG_UP, FakeService, Reply

pytestmark = pytest.mark.unit_slow

FAST = HttpRewardConfig(first_wait_s=0.01, connect_s=2, read_s=5, deadline_s=10, max_retries=3)
GOOD = Reply({"scores": [0.5, -2]})
PROMPTS = PromptSet(prompts=(), skipped=(), left_out_columns=(), fingerprint="")
# URL of a port without a listener.
NOBODY = "http://127.0.0.1:9"


def context(reward: RewardConfig) -> ScoringContext:
    return ScoringContext(
        reward=reward,
        model=ModelConfig(),
        generation=GenerationConfig(),
        seed=0,
        collective_timeout_s=1.0,
    )


@pytest.fixture
def serve() -> Iterator[Callable[..., FakeService]]:
    services: list[FakeService] = []

    def start(*replies: Reply | None) -> FakeService:
        services.append(FakeService(*replies))
        return services[-1]

    yield start
    for service in services:
        service.close()


def ask(
    url: str, settings: HttpRewardConfig = FAST, token: BearerToken | None = None
) -> RolloutGroup:
    """A group of two samples with rewards of 1, scored by the service."""
    group = replace(
        build_group("yes", "no", indices=(0, 3)),
        rewards=torch.ones(2, dtype=torch.float64),
        reward_parts={"f": torch.ones(2, dtype=torch.float64)},
    )

    async def score() -> RolloutGroup:
        scorer = HttpScorer(url=url, http=settings, token=token)
        try:
            return (await scored_by_async(scorer, group))[0]
        finally:
            await scorer.close()

    return asyncio.run(score())


def failure_of(group: RolloutGroup) -> tuple[FailureKind, str]:
    """Kind and message of the failure that a group's two samples share."""
    assert group.num_samples == 0
    assert [failure.sample_index for failure in group.failures] == [0, 3]
    (kind,) = {failure.kind for failure in group.failures}
    return kind, group.failures[0].message


class TestScores:
    def test_are_a_part_of_the_reward(self, serve):
        group = ask(serve(GOOD).url, replace(FAST, name="outside", weight=2.0))
        assert group.reward_parts["outside"].tolist() == [0.5, -2.0]
        assert group.rewards.tolist() == [2.0, -3.0]
        assert not group.failures

    def test_one_request_describes_the_whole_group(self, serve):
        service = serve(GOOD)
        ask(service.url + "/", token=BearerToken("s3cret"))
        (request,) = service.requests
        assert request["path"] == "/score"
        assert request["token"] == "Bearer s3cret"
        assert request["body"] == {
            "prompt_id": "e0-r1",
            "task": "sums",
            "prompt": "What is 6 times 7?",
            "messages": [],
            "answer": "42",
            "sample_indices": [0, 3],
            "responses": ["yes", "no"],
            "finish_reasons": ["stop", "length"],
        }

    def test_a_request_has_the_tools_of_its_prompt(self):
        tools = ({"type": "function", "function": {"name": "add"}},)
        group = build_group("yes", "no", indices=(0, 3))
        assert "tools" not in request_of(group)
        assert request_of(replace(group, prompt=replace(group.prompt, tools=tools)))["tools"] == [
            *tools
        ]

    def test_a_sample_without_one_fails_alone(self, serve):
        reply = Reply({"scores": [None, 1.0], "errors": ["too long", None]})
        group = ask(serve(reply).url)
        assert group.reward_parts["http"].tolist() == [1.0]
        (failure,) = group.failures
        assert (failure.sample_index, failure.kind) == (0, FailureKind.REWARD_ERROR)
        assert "reward 'http': the service: too long" in failure.message

    @pytest.mark.parametrize(
        ("score", "kind", "words"),
        [
            ("NaN", FailureKind.REWARD_NOT_FINITE, "nan, not a finite number"),
            ("-Infinity", FailureKind.REWARD_NOT_FINITE, "-inf"),
            ("1" + "0" * 400, FailureKind.REWARD_NOT_FINITE, "inf"),
            ('"0.7"', FailureKind.REWARD_ERROR, "'0.7' is not a number"),
            ("true", FailureKind.REWARD_ERROR, "'True' is not a number"),
            ("[1]", FailureKind.REWARD_ERROR, "not a number"),
            ("null", FailureKind.REWARD_ERROR, "null"),
        ],
    )
    def test_a_score_that_is_no_finite_number_is_a_failure(self, serve, score, kind, words):
        group = ask(serve(Reply(b'{"scores": [%s, 1]}' % score.encode())).url)
        assert group.reward_parts["http"].tolist() == [1.0]
        (failure,) = group.failures
        assert failure.kind is kind
        assert words in failure.message

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"<html>hello", "not JSON"),
            (b"\xff\xfe\x00", "not JSON"),
            (b"", "not JSON"),
            (b"[0.5, 1]", "no list `scores`"),
            (b'{"scores": 1}', "no list `scores`"),
            (b'{"scores": [1]}', "1 scores for 2 responses"),
            (b'{"scores": [1, 2, 3]}', "3 scores for 2 responses"),
            (b'{"scores": [1, 2], "errors": ["a"]}', "`errors`"),
        ],
    )
    def test_a_wrong_reply_fails_all_samples(self, serve, body, words):
        service = serve(Reply(body))
        kind, message = failure_of(ask(service.url))
        assert kind is FailureKind.REWARD_ERROR
        assert words in message
        assert len(service.requests) == 1


class TestRetries:
    @pytest.mark.parametrize(
        "trouble",
        [HANG_UP, Reply({}, 429), Reply({}, 500), Reply({}, 503)],
        ids=["hang-up", "429", "500", "503"],
    )
    def test_passing_failures_are_retried(self, serve, trouble):
        service = serve(trouble, trouble, GOOD)
        assert ask(service.url).reward_parts["http"].tolist() == [0.5, -2.0]
        assert len(service.requests) == 3

    def test_they_are_bounded_and_wait_longer_each_time(self, serve):
        service = serve(Reply({"error": "out of order"}, 502))
        kind, message = failure_of(ask(service.url, replace(FAST, first_wait_s=0.1)))
        assert kind is FailureKind.REWARD_ERROR
        assert "status 502: out of order, also after 3 retries" in message
        times = [request["at"] for request in service.requests]
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert len(waits) == 3
        # Half to the whole of 0.1, 0.2 and 0.4 s.
        assert [wait >= least for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True)] == [
            True
        ] * 3

    def test_a_refusal_is_not_repeated(self, serve):
        service = serve(Reply({"error": "no such task"}, 422))
        kind, message = failure_of(ask(service.url))
        assert kind is FailureKind.REWARD_ERROR
        assert "status 422: no such task" in message
        assert len(service.requests) == 1

    def test_a_redirection_is_not_followed(self, serve):
        elsewhere = serve(GOOD)
        service = serve(Reply({}, 307, Location=elsewhere.url + "/score"))
        assert "status 307" in failure_of(ask(service.url, token=BearerToken("x")))[1]
        assert not elsewhere.requests

    def test_no_server(self):
        kind, message = failure_of(ask(NOBODY, replace(FAST, max_retries=1)))
        assert kind is FailureKind.REWARD_ERROR
        assert "no reply" in message

    def test_the_service_says_how_long_to_wait(self, serve):
        service = serve(Reply({}, 429, Retry_After="1"), GOOD)
        assert ask(service.url).num_samples == 2
        first, second = (request["at"] for request in service.requests)
        assert second - first >= 1.0

    def test_also_with_a_date(self, serve):
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=600), usegmt=True)
        service = serve(Reply({}, 503, Retry_After=date))
        _, message = failure_of(ask(service.url))
        assert "asks to wait" in message
        assert "reward.http.deadline_s=10" in message
        assert len(service.requests) == 1


class TestDeadlines:
    def test_a_reply_that_does_not_come_is_waited_for_again(self, serve):
        service = serve(Reply({}, after_s=2), GOOD)
        assert ask(service.url, replace(FAST, read_s=0.3)).num_samples == 2

    def test_all_tries_have_one_deadline(self, serve):
        service = serve(Reply({}, 503))
        began = time.monotonic()
        settings = replace(FAST, deadline_s=0.5, max_retries=1000, first_wait_s=0.1)
        kind, message = failure_of(ask(service.url, settings))
        assert kind is FailureKind.REWARD_TIMEOUT
        assert "reward.http.deadline_s=0.5" in message
        assert "status 503" in message
        assert time.monotonic() - began < 5

    def test_not_more_groups_at_once_than_allowed(self, serve):
        service = serve(Reply({"scores": [1]}, after_s=0.3))
        scorer = HttpScorer(url=service.url, http=replace(FAST, max_in_flight=1), token=None)

        async def both() -> None:
            await asyncio.gather(*(scorer.score(build_group("a")) for _ in range(2)))
            await scorer.close()

        asyncio.run(both())
        first, second = (request["at"] for request in service.requests)
        assert second - first >= 0.3


class TestCheck:
    def check(self, url: str, **settings) -> list[str]:
        lines: list[str] = []
        http = replace(FAST, max_retries=1, **settings)
        check_service(context(RewardConfig(url=url, http=http)), PROMPTS, lines.append)
        return lines

    def test_returns_the_description_of_the_service(self, serve):
        service = serve(Reply({"status": "ok", "model": "m", "fingerprint": "f"}))
        (line,) = self.check(service.url)
        assert "model m, fingerprint f" in line
        assert service.requests[0]["path"] == "/health"

    def test_waits_for_a_service_that_starts(self, serve):
        assert self.check(serve(Reply({}, 503), Reply(b"well")).url)

    @pytest.mark.parametrize(
        ("reply", "words"),
        [
            (Reply({"error": "who are you"}, 401), "reward.http.token_variable names none"),
            (Reply({}, 404), "status 404"),
            (Reply({}, 503), "also after 1 retries"),
        ],
    )
    def test_refuses_others(self, serve, reply, words):
        with pytest.raises(RequestError, match=words):
            self.check(serve(reply).url)

    def test_no_server_is_refused(self):
        with pytest.raises(RequestError, match="start the service before the run"):
            self.check(NOBODY)

    def test_nothing_to_check(self):
        check_service(context(RewardConfig()), PROMPTS, pytest.fail)


class TestToken:
    def test_comes_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("OUR_TOKEN", " abc\n")
        token = read_token("reward.http.token_variable", "OUR_TOKEN")
        assert token is not None
        assert token.header == "Bearer abc"
        assert "abc" not in repr(token)

    @pytest.mark.parametrize("value", [None, "", "a b", "ä"])
    def test_must_be_there_and_fit_into_a_header(self, monkeypatch, value):
        monkeypatch.delenv("OUR_TOKEN", raising=False)
        if value is not None:
            monkeypatch.setenv("OUR_TOKEN", value)
        with pytest.raises(RequestError, match=r"reward\.http\.token_variable=OUR_TOKEN"):
            read_token("reward.http.token_variable", "OUR_TOKEN")
