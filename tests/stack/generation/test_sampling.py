"""What the engine says about its samples, against plain torch on the same weights."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer

from rlhf_ray.config.errors import RunFailed
from tests.stack.generation.harness import (
    Sample,
    StartedEngine,
    make_prompt,
    samples_of,
    token_logits,
    token_logprobs,
)

pytestmark = pytest.mark.stack

PROMPTS = [make_prompt(number) for number in range(4)]


def largest_gap(samples: list[Sample], expected: list[Tensor]) -> float:
    gaps = [
        (sample.logprobs - logprobs)[sample.mask].abs().max()
        for sample, logprobs in zip(samples, expected, strict=True)
    ]
    return float(torch.stack(gaps).max())


def all_samples(engine: StartedEngine) -> list[Sample]:
    return [sample for group in engine.generate(*PROMPTS) for sample in samples_of(group)]


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.6])
def test_logprobs_are_the_learners(engine, models, temperature):
    with engine.changed(temperature=temperature):
        samples = all_samples(engine)
    expected = [token_logprobs(models["tied0"], s.tokens, temperature) for s in samples]
    assert largest_gap(samples, expected) < 1e-4
    # Another temperature is another distribution: the comparison can fail.
    wrong = [token_logprobs(models["tied0"], s.tokens, temperature + 0.1) for s in samples]
    assert largest_gap(samples, wrong) > 1e-2


def test_a_prompt_that_an_engine_step_does_not_hold_waits_for_the_next(engine, models):
    """vLLM on a CPU ends where it reads a part of a prompt whose samples have a seed."""
    generator = random.Random(3)
    length = engine.settings.max_num_batched_tokens // 2 - 200
    prompts = [
        replace(
            make_prompt(number),
            token_ids=tuple(generator.randrange(5, 300) for _ in range(length)),
        )
        for number in range(3)
    ]
    assert 3 * length > engine.settings.max_num_batched_tokens
    samples = [sample for group in engine.generate(*prompts) for sample in samples_of(group)]
    assert len(samples) >= 3
    expected = [token_logprobs(models["tied0"], s.tokens) for s in samples]
    assert largest_gap(samples, expected) < 1e-4


def test_prompts_are_neither_trained_on_nor_changed(engine):
    (group,) = engine.generate(PROMPTS[0])
    for sample in samples_of(group):
        assert sample.tokens[:8] == PROMPTS[0].token_ids
        assert sample.mask.tolist() == [False] * 7 + [True] * (len(sample.tokens) - 8)
        assert sample.logprobs[:7].tolist() == [0.0] * 7
        assert sample.versions[:7].tolist() == [-1] * 7


@pytest.mark.parametrize("stop", [[], ["e"]])
def test_ends_of_texts_are_those_of_decoded_prefixes(engine, folders, stop):
    tokenizer = AutoTokenizer.from_pretrained(folders["tied0"])
    with engine.changed(stop=stop):
        groups = engine.generate(*PROMPTS)
    num_split = 0
    for group in groups:
        ends = group.steps.text_ends.split(group.lengths.tolist())
        for sample, row in zip(samples_of(group), ends, strict=True):
            found = row[1:][sample.mask].tolist()
            assert row[1:][~sample.mask].tolist() == [0] * (len(row) - 1 - len(found))
            assert found[-1] == len(sample.text)
            for place, end in enumerate(found):
                prefix = tokenizer.decode(sample.response[: place + 1], skip_special_tokens=True)
                assert prefix.startswith(sample.text[:end])
                num_split += len(prefix) > end
    # An untrained model says parts of characters, and stop strings are no text.
    assert num_split > 0


def keep_top_k(logits: Tensor) -> Tensor:
    return logits >= logits.topk(5, dim=-1).values[:, -1:]


def keep_top_p(logits: Tensor) -> Tensor:
    """The smallest set of the likeliest tokens whose probabilities sum to 0.5 or more."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, order, before < 0.5)


def keep_min_p(logits: Tensor) -> Tensor:
    probabilities = logits.softmax(dim=-1)
    return probabilities >= 0.3 * probabilities.amax(dim=-1, keepdim=True)


@pytest.mark.parametrize(
    ("settings", "keep"),
    [({"top_k": 5}, keep_top_k), ({"top_p": 0.5}, keep_top_p), ({"min_p": 0.3}, keep_min_p)],
)
def test_logprobs_are_normalised_over_the_tokens_that_are_left(engine, models, settings, keep):
    with engine.changed(temperature=0.7, **settings):
        samples = all_samples(engine)
    expected = []
    for sample in samples:
        logits = token_logits(models["tied0"], sample.tokens) / 0.7
        kept = logits.masked_fill(~keep(logits), -torch.inf).log_softmax(dim=-1)
        expected.append(kept.gather(1, torch.tensor(sample.tokens)[1:, None])[:, 0])
    assert largest_gap(samples, expected) < 1e-4
    # Over the whole vocabulary it is another distribution; the learner gets the support
    # with the rollouts (test_support.py).
    unmasked = [token_logprobs(models["tied0"], s.tokens, 0.7) for s in samples]
    assert largest_gap(samples, unmasked) > 0.1


def test_a_batch_is_the_same_bit_for_bit_in_whatever_order_it_comes(engine):
    first = engine.generate(*PROMPTS)
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    assert shuffled != PROMPTS
    again = {group.prompt.prompt_id: group for group in engine.generate(*shuffled)}
    for group in first:
        other = again[group.prompt.prompt_id]
        assert torch.equal(group.token_ids, other.token_ids)
        assert torch.equal(group.generator_logprobs, other.generator_logprobs)


def test_samples_of_a_prompt_differ_and_do_not_depend_on_how_they_are_asked_for(engine):
    (group,) = engine.generate(PROMPTS[0], num_samples=8)
    responses = [tuple(sample.response) for sample in samples_of(group)]
    assert len(set(responses)) == 8
    part, failures = engine.run(engine.engine.generate(PROMPTS[0], (5, 2)))
    assert failures == ()
    assert part.sample_indices == (2, 5)
    assert [tuple(s.response) for s in samples_of(part)] == [responses[2], responses[5]]


def test_requests_that_start_together_wait_for_the_last_one(engine):
    async def scenario() -> None:
        generate = engine.engine.generate
        first = asyncio.create_task(generate(PROMPTS[0], (0,), together=3))
        done, _ = await asyncio.wait([first], timeout=0.5)
        assert not done
        # Others start meanwhile, and are not counted.
        await asyncio.wait_for(generate(PROMPTS[2], (0, 1)), timeout=5)
        assert not first.done()
        second = asyncio.create_task(generate(PROMPTS[1], (0, 1), together=3))
        results = await asyncio.wait_for(asyncio.gather(first, second), timeout=5)
        assert [group.num_samples for group, _ in results] == [1, 2]
        # The next batch is counted from the start.
        again = asyncio.create_task(generate(PROMPTS[0], (0,), together=2))
        done, _ = await asyncio.wait([again], timeout=0.5)
        assert not done
        await asyncio.wait_for(
            asyncio.gather(again, generate(PROMPTS[1], (0,), together=2)), timeout=5
        )

    engine.run(scenario())


def test_requests_that_wait_for_one_that_never_comes_fail_in_time(engine):
    async def scenario() -> None:
        await engine.engine.generate(PROMPTS[0], (0, 1), together=3)

    with (
        engine.time_limit(0.3),
        pytest.raises(
            RunFailed, match=r"only 2 of 3 requests of a batch have arrived within 0\.3 s"
        ),
    ):
        engine.run(scenario())
    engine.generate(PROMPTS[0])


def test_the_end_of_text_is_trained_on(engine, folders: dict[str, Path]):
    tokenizer = AutoTokenizer.from_pretrained(folders["tied0"])
    with engine.changed(max_response_tokens=200):
        samples = all_samples(engine)
    ended = [sample for sample in samples if sample.finish_reason == "stop"]
    assert ended
    for sample in ended:
        assert sample.response[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in sample.response[:-1]
        assert bool(sample.mask[-1])
        assert tokenizer.eos_token not in sample.text
    for sample in samples:
        if sample.finish_reason == "length":
            assert len(sample.response) == 200


def test_end_of_text_can_be_ignored(engine):
    with engine.changed(max_response_tokens=200, ignore_eos=True):
        samples = all_samples(engine)
    assert {len(sample.response) for sample in samples} == {200}


def test_a_stop_string_is_trained_on_and_not_in_the_text(engine, folders: dict[str, Path]):
    tokenizer = AutoTokenizer.from_pretrained(folders["tied0"])

    def decode(token_ids: list[int]) -> str:
        return tokenizer.decode(token_ids, skip_special_tokens=True)

    with engine.changed(stop=["e"], max_response_tokens=100):
        samples = all_samples(engine)
    ended = [s for s in samples if s.finish_reason == "stop" and "e" in decode(s.response)]
    assert ended
    for sample in ended:
        # Up to the token that completes the stop string, and none behind it.
        assert "e" not in decode(sample.response[:-1])
        assert sample.text == decode(sample.response).partition("e")[0]


def test_responses_keep_a_least_length(engine):
    with engine.changed(min_response_tokens=20, max_response_tokens=200, stop=["e"]):
        samples = all_samples(engine)
    assert min(len(sample.response) for sample in samples) >= 20


def test_statistics_of_the_engine(engine):
    engine.engine.statistics.take()
    all_samples(engine)
    taken = engine.engine.statistics.take()
    assert 0 < taken["kv_cache_use_max"] <= 1
    assert taken["preemptions"] == 0
    assert 0 <= taken["prefix_hits"] <= taken["prefix_queries"]
    assert set(engine.engine.statistics.take().values()) == {0.0}
