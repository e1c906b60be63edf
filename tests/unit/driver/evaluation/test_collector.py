"""Answers to held-out prompts, and the likelihood of demonstrations, over fake engines."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rlhf_ray.config.errors import RunFailed
from rlhf_ray.driver.evaluation.collector import AnswerCollector, CollectSettings
from rlhf_ray.driver.evaluation.likelihood import measure_likelihood
from rlhf_ray.driver.updates.token_scores import NoTokenScores
from rlhf_ray.evaluation.answers import MeasureSettings, measure_answers
from rlhf_ray.records import TokenValues
from rlhf_ray.records.supervised import LabelledTokens
from rlhf_ray.testing.fake_roles import FakeBuilder
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import FakeGenerators, FakeRewards, done, make_prompt

SETTINGS = CollectSettings(
    samples=2,
    greedy=True,
    prompts_at_once=3,
    max_failure_rate=0.5,
    timeout_s=60.0,
    # As in a run whose groups have eight samples.
    measure=MeasureSettings(greedy_from=8, kl_estimator="k1", ngram=1, with_text=True),
)
PROMPTS = [dataclasses.replace(make_prompt(i), stream_index=0) for i in range(7)]


class Builder(FakeBuilder):
    """A builder that measures answers in this process."""

    def measure(self, groups, reference, settings):
        values = [v for rank in reference for v in rank]
        return done("builder", 0, signal=measure_answers(groups, values, settings))


class Reference:
    """Two ranks of a reference that finds every token one nat less likely than the engine."""

    def score(self, groups, num_tokens):
        assert num_tokens == [int(group.lengths.sum()) for group in groups]
        scored = [
            TokenValues(
                prompt_id=group.prompt.prompt_id,
                values=torch.where(group.loss_mask, group.generator_logprobs - 1, 0.0),
            )
            for group in groups
        ]
        return [done("reference", rank, payload=scored[rank::2]) for rank in range(2)]


def collector(engines=None, rewards=None, reference=None, settings=SETTINGS, seed=0):
    return AnswerCollector(
        generators=engines or FakeGenerators(2),
        rewards=rewards or FakeRewards(),
        reference=reference or NoTokenScores(),
        builder=Builder(),
        waiter=InProcessWaiter(seed),
        settings=settings,
    )


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_in_the_order_of_the_prompts(seed):
    engines = FakeGenerators(2)
    found = collector(engines, seed=seed).collect(PROMPTS)
    assert [prompt.prompt_id for prompt in found.prompts] == [p.prompt_id for p in PROMPTS]
    assert [group.prompt.prompt_id for group in found.groups] == [p.prompt_id for p in PROMPTS]
    assert {indices for _, _, indices in engines.requests} == {(0, 1, 8)}
    first = found.prompts[0]
    assert [answer.reward for answer in first.answers["sampled"]] == [0.0, 1.0]
    assert [answer.reward for answer in first.answers["greedy"]] == [8.0]
    assert first.answers["sampled"][0].kl is None


def test_prompts_start_in_waves():
    engines = FakeGenerators(2)
    collector(engines).collect(PROMPTS)
    # Of three, three and one, over two engines, each with three answers.
    wave = [(0, 6), (1, 3), (0, 6)]
    assert engines.together == [*wave, *wave, (0, 3)]


def test_a_reference_on_several_ranks():
    found = collector(reference=Reference()).collect(PROMPTS)
    kls = [answer.kl for prompt in found.prompts for answer in prompt.answers["sampled"]]
    assert kls == [pytest.approx(2.0)] * 14


def test_greedy_answers_alone_and_sampled_ones_alone():
    greedy = dataclasses.replace(SETTINGS, samples=0)
    assert set(collector(settings=greedy).collect(PROMPTS).prompts[0].answers) == {"greedy"}
    sampled = dataclasses.replace(SETTINGS, greedy=False)
    assert set(collector(settings=sampled).collect(PROMPTS).prompts[0].answers) == {"sampled"}


def test_a_prompt_with_a_failed_answer_has_no_result():
    rewards = FakeRewards(
        score=lambda prompt, index: None if (prompt.text, index) == ("prompt 4", 8) else 1.0
    )
    found = collector(rewards=rewards).collect(PROMPTS)
    assert len(found.prompts) == 6
    assert "e0-r4" not in [prompt.prompt_id for prompt in found.prompts]
    assert found.failures == ("prompt e0-r4, sample 8: reward_error: fake reward failure",)


def test_too_many_failures_end_it():
    rewards = FakeRewards(score=lambda prompt, index: None)
    strict = dataclasses.replace(SETTINGS, max_failure_rate=0.02)
    with pytest.raises(RunFailed, match="fake reward failure"):
        collector(rewards=rewards, settings=strict).collect(PROMPTS)


class Engines(FakeGenerators):
    """Two engines that remember how many sequences each was asked to score."""

    def __init__(self):
        super().__init__(2)
        self.sizes = []

    def score_shares(self, shares):
        self.sizes.append([len(share) for share in shares])
        return super().score_shares(shares)


def test_the_likelihood_counts_tokens_under_the_mask():
    examples = [
        LabelledTokens(
            token_ids=torch.tensor([9, i, 5, 7]),
            loss_mask=torch.tensor([False, False, True, i % 2 == 0]),
        )
        for i in range(5)
    ]
    engines = Engines()
    found = measure_likelihood(engines, InProcessWaiter(), examples, at_once=4, timeout_s=1.0)
    assert found.num_examples == 5
    # The 5 of every example, the 7 of three.
    assert (found.num_tokens, found.total_nats) == (8, pytest.approx(5 * 5 + 3 * 7))
    assert engines.sizes == [[2, 2], [1, 0]]
