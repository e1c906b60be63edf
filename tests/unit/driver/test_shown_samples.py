"""Answers of a step on the terminal."""

from __future__ import annotations

from rlhf_ray.driver.rollouts.batch import Batch
from rlhf_ray.driver.shown_samples import ShownSamples
from rlhf_ray.testing.fake_roles import FakeBuilder
from rlhf_ray.testing.fake_waiter import InProcessWaiter
from rlhf_ray.testing.fakes import make_group, make_prompt


def test_so_many_answers_as_are_wanted_of_the_prompts_that_come_again():
    groups = [make_group(make_prompt(i), (0, 1), version=0, rewards=[1.0, 2.0]) for i in range(5)]
    summaries = tuple(group.summary() for group in groups)
    batch = Batch(
        groups=tuple(f"group {i}" for i in range(5)),
        summaries=summaries,
        failures=(),
        num_dropped=0,
        generate_s=0.0,
        score_s=0.0,
    )
    ranked = sorted(range(5), key=lambda i: summaries[i].prompt_rank)
    said: list[str] = []
    samples = ShownSamples(
        FakeBuilder(), InProcessWaiter(), said.append, num_samples=3, timeout_s=1
    )
    samples.show(7, batch)
    assert said == [f"answers of step 7:\nanswer to group {ranked[0]}\nanswer to group {ranked[1]}"]
