"""The second look at a few answers after the update."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.updates.updated_scores import UpdatedScores
from rlhf_ray.prompt_choice import DETAILED_PROMPTS, prompt_rank
from rlhf_ray.records import GroupSummary
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import done, make_group, make_prompt


class Learner:
    """Notes what it was asked to score."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Any], list[int]]] = []

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        self.asked.append(([*groups], [*num_tokens]))
        return [done("learner", rank, payload=f"of rank {rank}") for rank in range(2)]


def batch(size: int, *, num_replayed: int = 0) -> Batch:
    summaries: list[GroupSummary] = []
    for number in range(size):
        prompt = dataclasses.replace(make_prompt(number), text=f"prompt {number}")
        group = make_group(prompt, (0, 1), version=0, rewards=[1.0, 2.0])
        summaries.append(group.summary())
    return Batch(
        groups=tuple(range(size)),
        summaries=tuple(summaries),
        failures=(),
        num_dropped=0,
        generate_s=0.0,
        score_s=0.0,
        num_replayed=num_replayed,
    )


def test_few_prompts_are_scored_in_the_steps_that_are_due():
    learner = Learner()
    scores = UpdatedScores(learner, InProcessWaiter(), every_steps=3, timeout_s=1.0)
    for step in range(5):
        scores.measure(batch(20, num_replayed=4), step)
        assert scores.take() == (("of rank 0", "of rank 1") if step in (0, 3) else ())
    assert scores.take() == ()
    assert len(learner.asked) == 2
    groups, num_tokens = learner.asked[0]
    # The smallest hashes of the texts, and none of the replayed groups at the end.
    expected = sorted(range(16), key=lambda number: prompt_rank(f"prompt {number}"))
    assert groups == expected[:DETAILED_PROMPTS]
    lengths = [sum(summary.sample_lengths) for summary in batch(20).summaries]
    assert num_tokens == [lengths[place] for place in groups]
