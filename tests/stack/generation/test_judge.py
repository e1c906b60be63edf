"""The judge with a real engine: what counts is what it has said, and it waits for nobody."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from transformers import AutoTokenizer

from rlhf_ray.config.groups.reward import JudgeConfig
from rlhf_ray.generation.completions import Completion, CompletionFailure, CompletionRequest
from rlhf_ray.records import FailureKind
from rlhf_ray.rewards.judge import JudgeScorer
from rlhf_ray.rewards.outcomes import ItemFailure
from rlhf_ray.testing.tiny import tiny_that_says
from tests.stack.generation.harness import StartedEngine, load_model, make_prompt
from tests.unit.rewards.conftest import build_group

pytestmark = pytest.mark.stack

JUDGE = JudgeConfig(
    model="a/b",
    rubric="{prompt} {response}",
    pattern="([0-9])",
    min_score=0,
    max_score=9,
    scale=False,
    max_judgement_tokens=24,
)


class Recording:
    """The engine, and what it has said."""

    def __init__(self, started: StartedEngine) -> None:
        self._engine = started.engine
        self.said: list[str] = []

    async def complete(self, asked: Sequence[CompletionRequest], *, timeout_s: float) -> list[Any]:
        outcomes = await self._engine.complete(asked, timeout_s=timeout_s)
        self.said += [one.text for one in outcomes if isinstance(one, Completion)]
        return outcomes


@pytest.fixture
def judge_with(engine, folders):
    tokenizer = AutoTokenizer.from_pretrained(folders["tied0"])

    def make(recording: Any = None, **settings: Any) -> JudgeScorer:
        judge = replace(JUDGE, **settings)
        engines = [recording or engine.engine]
        return JudgeScorer(judge=judge, tokenizer=tokenizer, engines=engines, seed=5)

    return make


def test_scores_are_what_the_pattern_finds_in_what_was_said(engine, judge_with):
    recording = Recording(engine)
    responses = tuple(f"answer {'x' * number}" for number in range(24))
    scorer = judge_with(recording, temperature=1.0)
    outcomes = engine.run(scorer.score(build_group(*responses)))
    assert len(set(recording.said)) > 12
    found = [re.findall("[0-9]", said) for said in recording.said]
    assert 0 < sum(map(bool, found)) < len(found), "both kinds"
    for outcome, said, digits in zip(outcomes, recording.said, found, strict=True):
        # A digit of a longer number is not the score.
        is_part = bool(digits) and len(re.findall(r"[0-9][0-9.,]*", said)[-1].rstrip(".,")) > 1
        if digits and not is_part:
            assert outcome == float(digits[-1])
        else:
            assert isinstance(outcome, ItemFailure)
            assert outcome.kind is FailureKind.REWARD_ERROR
    again = judge_with(Recording(engine), temperature=1.0)
    assert engine.run(again.score(build_group(*responses))) == outcomes, "the seed decides"


def test_a_model_that_knows_one_score(engine, judge_with, tmp_path):
    engine.run(engine.update(load_model(tiny_that_says(tmp_path / "seven", "7"))))
    assert engine.run(judge_with().score(build_group("good", "bad"))) == [7.0, 7.0]


def test_it_is_answered_while_a_batch_waits_for_its_requests(engine, judge_with):
    """With the policy as judge, a batch may wait for its own rewards."""

    async def both() -> tuple[Any, Any]:
        batch = asyncio.create_task(engine.engine.generate(make_prompt(1), (0, 1), together=3))
        await asyncio.sleep(0)
        # Two questions to the judge are not taken for what the batch waits for.
        judged = await asyncio.wait_for(judge_with().score(build_group("a", "b")), timeout=20)
        assert not batch.done()
        await engine.engine.generate(make_prompt(2), (0,), together=3)
        return judged, await batch

    judged, (group, failures) = engine.run(both())
    assert len(judged) == 2
    assert group.num_samples == 2
    assert failures == ()


def test_a_judgement_that_takes_too_long(engine, judge_with):
    scorer = judge_with(timeout_s=0.001, max_judgement_tokens=800)
    (outcome,) = engine.run(scorer.score(build_group("a")))
    assert outcome.kind is FailureKind.REWARD_TIMEOUT


def test_a_question_that_the_engine_refuses(engine):
    request = CompletionRequest(token_ids=(5,) * 2000, max_tokens=1, temperature=0.0, seed=0)
    (outcome,) = engine.run(engine.engine.complete([request], timeout_s=5))
    assert isinstance(outcome, CompletionFailure)
    assert outcome.kind is FailureKind.REWARD_ERROR
