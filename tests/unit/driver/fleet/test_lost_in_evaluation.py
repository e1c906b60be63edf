"""Engines lost while they answer held-out prompts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.driver.evaluation.collector import AnswerCollector, CollectSettings
from rlhf_ray.driver.updates.token_scores import NoTokenScores
from rlhf_ray.evaluation.answers import MeasureSettings, measure_answers
from rlhf_ray.testing.fake_roles import FakeBuilder
from rlhf_ray.testing.fakes import FakeRewards, done, make_prompt
from tests.unit.driver.fleet.faulty_engines import FleetRun

PROMPTS = [dataclasses.replace(make_prompt(i), stream_index=0) for i in range(7)]


class Measuring(FakeBuilder):
    """A builder that measures answers in this process."""

    def measure(self, groups: Any, reference: Any, settings: MeasureSettings) -> Call:
        return done("builder", 0, signal=measure_answers(groups, [], settings))


@pytest.mark.parametrize("num_engines", [1, 2])
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_every_prompt_is_answered_once_with_the_same_weights(tmp_path, how, num_engines):
    run = FleetRun(tmp_path, num_engines=num_engines, num_steps=2).run()
    settings = CollectSettings(
        samples=2,
        greedy=True,
        prompts_at_once=4,
        max_failure_rate=0.0,
        timeout_s=1000.0,
        measure=MeasureSettings(greedy_from=8, kl_estimator="k1", ngram=1, with_text=True),
    )
    collector = AnswerCollector(
        generators=run.fleet,
        rewards=FakeRewards(),
        reference=NoTokenScores(),
        builder=Measuring(),
        waiter=run.waiter,
        settings=settings,
    )
    last = num_engines - 1
    fault = run.kill(last) if how == "kill" else run.stop(last)
    run.on("generate", run.engines.asked["generate"] + 2, fault)
    found = collector.collect(PROMPTS)
    assert [prompt.prompt_id for prompt in found.prompts] == [p.prompt_id for p in PROMPTS]
    assert {group.summary().oldest_version for group in found.groups} == {2}
    assert run.engines.fenced == [MemberName(role="generator", rank=last)]
