"""Requests that are given up: the engine works on the others, and nothing of them is left."""

from __future__ import annotations

import asyncio

import pytest

from rlhf_ray.records import FailureKind
from tests.stack.generation.harness import make_prompt

pytestmark = pytest.mark.stack

PROMPTS = [make_prompt(number) for number in range(3)]
IDS = [prompt.prompt_id for prompt in PROMPTS]


def test_running_requests_end_at_once_and_the_others_go_on(engine):
    async def scenario() -> None:
        calls = [asyncio.create_task(engine.engine.generate(p, (0, 1, 2))) for p in PROMPTS]
        await asyncio.sleep(0.2)
        assert not any(call.done() for call in calls), "they are too short to tell"
        await engine.engine.abort(IDS[:2])
        for call, prompt_id in zip(calls[:2], IDS, strict=False):
            group, failures = await asyncio.wait_for(call, timeout=0.5)
            assert group.num_samples == 0
            assert [f.sample_index for f in failures] == [0, 1, 2]
            assert {f.kind for f in failures} == {FailureKind.GENERATION_ABORTED}
            assert {f.prompt_id for f in failures} == {prompt_id}
        assert not calls[2].done()
        group, failures = await asyncio.wait_for(calls[2], timeout=60)
        assert (group.num_samples, failures) == (3, ())

    with engine.changed(max_response_tokens=900, ignore_eos=True):
        engine.run(scenario())


def test_a_prompt_can_be_asked_for_again(engine):
    (expected,) = engine.generate(PROMPTS[0])

    async def scenario() -> None:
        call = asyncio.create_task(engine.engine.generate(PROMPTS[0], (0, 1)))
        await asyncio.sleep(0)
        await engine.engine.abort(IDS[:1])
        await asyncio.wait_for(call, timeout=1)

    engine.run(scenario())
    (again,) = engine.generate(PROMPTS[0])
    assert again.token_ids.tolist() == expected.token_ids.tolist()


def test_requests_that_wait_for_others_never_start_and_are_counted_as_come(engine):
    async def scenario() -> None:
        calls = [
            asyncio.create_task(engine.engine.generate(p, (0, 1), together=6)) for p in PROMPTS[1:]
        ]
        await asyncio.sleep(0)
        await engine.engine.abort(IDS[1:])
        calls.append(asyncio.create_task(engine.engine.generate(PROMPTS[0], (0, 1), together=6)))
        results = await asyncio.wait_for(asyncio.gather(*calls), timeout=5)
        assert [group.num_samples for group, _ in results] == [0, 0, 2]

    engine.run(scenario())


def test_nothing_to_end(engine):
    engine.run(engine.engine.abort(["e9-r9"]))
