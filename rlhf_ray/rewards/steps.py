"""Rewards of a response's steps, moved from places in the text to tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from rlhf_ray.records import RolloutGroup
from rlhf_ray.rewards.answers import Answer
from rlhf_ray.rewards.protocol import StepRewards


def last_tokens(text_ends: Sequence[int], ends: Sequence[int], num_characters: int) -> list[int]:
    """The sampled token with which each step ends.

    A step that ends inside a token ends with that token. A step that ends with the text ends with
    the last token, even if that token adds no text: the end of the text is part of the last step.

    Args:
        text_ends [R]: characters of the text after each sampled token; R of at least 1.
        ends: characters of the text after each step.
        num_characters: length of the whole text.

    Returns:
        Positions in `text_ends`, in non-decreasing order; two steps may end with the same token.
    """
    last = len(text_ends) - 1
    return [
        last if end >= num_characters else min(bisect_left(text_ends, end), last) for end in ends
    ]


def with_steps(
    group: RolloutGroup, parts: Mapping[str, Sequence[Answer]], weights: Mapping[str, float]
) -> RolloutGroup:
    """The group with the weighted rewards of its steps on the steps' last tokens.

    Rewards that fall on the same token are added and make one step. A plain number is one step that
    ends with the last sampled token. A sample without a sampled token gets no step reward. A
    function of weight 0 is only logged: its steps are not steps of the sample.

    Args:
        group: a group with `steps`, in which no step is rewarded yet.
        parts: for each function its answers, one per sample.
        weights: weight of each function.
    """
    steps = group.steps
    assert steps is not None, "the engine has not said where the text of each token ends"
    rewards = torch.zeros(group.token_ids.shape[0], dtype=torch.float64)
    ends = torch.zeros(group.token_ids.shape[0], dtype=torch.bool)
    start = 0
    for sample, (length, response) in enumerate(
        zip(group.lengths.tolist(), group.responses, strict=True)
    ):
        sampled = group.loss_mask[start : start + length].nonzero()[:, 0] + start
        start += length
        texts = steps.text_ends[sampled].tolist()
        for name, answers in parts.items() if texts else ():
            if weights[name] == 0:
                continue
            own = _as_steps(answers[sample], len(response))
            places = sampled[last_tokens(texts, own.ends, len(response))]
            values = torch.tensor(own.rewards, dtype=torch.float64)
            rewards.index_add_(0, places, weights[name] * values)
            ends[places] = True
    return replace(group, steps=replace(steps, rewards=rewards, ends=ends))


def _as_steps(answer: Answer, num_characters: int) -> StepRewards:
    if isinstance(answer, StepRewards):
        return answer
    return StepRewards(rewards=(answer,), ends=(num_characters,))
