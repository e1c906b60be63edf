"""The builder's files: advantages and scores after the update reach the tokens that they are of."""

from __future__ import annotations

import json

import torch

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.builder import ExperienceBuilder
from rlhf_ray.experience.reward_shaping import NO_SHAPING
from rlhf_ray.observe.rollout_log import rollout_path
from rlhf_ray.records import Coefficients, TokenValues
from rlhf_ray.testing.fakes import make_group, make_prompt


def test_advantages_and_updated_scores_are_written_next_to_the_tokens(tmp_path):
    builder = ExperienceBuilder(
        algorithm=AlgorithmConfig(advantage="group", normalize_by_std=False),
        learner=RankPlan(num_ranks=1, max_tokens_per_micro_batch=1000),
        critic=None,
        old_logprobs_from=OldLogprobsFrom.GENERATOR,
        seed=0,
        shaping=NO_SHAPING,
    )
    # In another order than that of the stream.
    groups = [
        make_group(make_prompt(number), (0, 1), version=0, rewards=[number, number + 1.0])
        for number in (2, 0, 1)
    ]
    builder.build(
        step=0,
        coefficients=Coefficients(),
        groups=groups,
        reference=(),
        values=(),
        old=(),
    )
    size = groups[0].token_ids.shape[0]
    updated = [
        TokenValues(prompt_id=group.prompt.prompt_id, values=torch.full((size,), -0.25 - place))
        for place, group in enumerate(groups[:2])
    ]
    path = rollout_path(tmp_path, 1)
    builder.write_rollouts(path, groups, [updated[:1], updated[1:]])
    builder.finish_rollouts()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    advantages = {(row["prompt_id"], row["reward"]): row["tokens"]["advantages"] for row in rows}
    # Reward less the mean of the group, on both tokens of every answer.
    assert advantages == {
        (group.prompt.prompt_id, float(reward)): [sign, sign]
        for group in groups
        for reward, sign in zip(group.rewards.tolist(), (-0.5, 0.5), strict=True)
    }
    scores = [row["tokens"].get("updated_logprobs") for row in rows]
    assert scores == [[-0.25] * 2] * 2 + [[-1.25] * 2] * 2 + [None] * 2


def test_texts_for_the_terminal_are_those_of_the_best_and_the_worst():
    group = make_group(make_prompt(0), (0, 1, 2), version=0, rewards=[0.5, 2.0, 1.0])
    builder = ExperienceBuilder.__new__(ExperienceBuilder)
    best, worst = builder.sample_texts([group])
    assert best.startswith("  reward 2, 2 tokens,")
    assert worst.startswith("  reward 0.5, 2 tokens,")
