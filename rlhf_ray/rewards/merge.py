"""Pure functions on groups before and during scoring: merge parts, drop samples, add rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.records import GroupSteps, RolloutGroup, SampleFailure
from rlhf_ray.records.support import join_supports
from rlhf_ray.rewards.answers import Answer, outcome
from rlhf_ray.rewards.steps import with_steps

_TOKEN_FIELDS = (
    "token_ids",
    "loss_mask",
    "generator_logprobs",
    "weight_versions",
)
_STEP_FIELDS = ("text_ends", "rewards", "ends")


def merge_parts(*parts: RolloutGroup) -> RolloutGroup:
    """Merge the parts of one group, which several engines sampled, in order of sample index.

    A failure is left out if another part has the sample: the retry succeeded.

    Raises:
        ValueError: there is no part, the parts belong to different prompts or have rewards already,
            or a sample is there twice.
    """
    _check_parts(parts)
    # (sample index, number of the part, position in the part), sorted by sample index.
    samples = sorted(
        (index, number, position)
        for number, part in enumerate(parts)
        for position, index in enumerate(part.sample_indices)
    )
    indices = tuple(index for index, _, _ in samples)
    if len(set(indices)) != len(indices):
        raise ValueError(
            f"prompt {parts[0].prompt.prompt_id} has a sample more than once: {indices}"
        )
    first = parts[0]
    return replace(
        first,
        sample_indices=indices,
        lengths=torch.cat(
            [first.lengths[:0], *(parts[n].lengths[p : p + 1] for _, n, p in samples)]
        ),
        responses=tuple(parts[n].responses[p] for _, n, p in samples),
        finish_reasons=tuple(parts[n].finish_reasons[p] for _, n, p in samples),
        failures=tuple(
            failure
            for part in parts
            for failure in part.failures
            if failure.sample_index not in indices
        ),
        **_token_fields(parts, [(n, p) for _, n, p in samples]),
    )


def drop_failed(group: RolloutGroup, failures: Sequence[SampleFailure]) -> RolloutGroup:
    """Drop the samples that these failures name, and append the failures to the group."""
    if not failures:
        return group
    failed = {failure.sample_index for failure in failures}
    keep = [p for p, index in enumerate(group.sample_indices) if index not in failed]
    return replace(
        group,
        sample_indices=tuple(group.sample_indices[p] for p in keep),
        lengths=group.lengths[keep],
        responses=tuple(group.responses[p] for p in keep),
        finish_reasons=tuple(group.finish_reasons[p] for p in keep),
        rewards=group.rewards[keep] if group.is_scored else group.rewards,
        reward_parts={name: part[keep] for name, part in group.reward_parts.items()},
        failures=(*group.failures, *failures),
        **_token_fields([group], [(0, p) for p in keep]),
    )


def with_rewards(
    group: RolloutGroup, parts: Mapping[str, Sequence[Answer]], weights: Mapping[str, float]
) -> RolloutGroup:
    """The group with its rewards, [G] float64: the weighted sum of the parts.

    In a run that trains on steps (the group has `steps`) the rewards of the steps are set too.

    Args:
        parts: for each function its answers, one per sample.
        weights: weight of each function.
    """
    tensors = {
        name: torch.tensor([outcome(answer) for answer in answers], dtype=torch.float64)
        for name, answers in parts.items()
    }
    rewards = torch.zeros(group.num_samples, dtype=torch.float64)
    for name, values in tensors.items():
        rewards = rewards + weights[name] * values
    group = replace(group, rewards=rewards, reward_parts=tensors)
    return with_steps(group, parts, weights) if group.steps is not None else group


def _check_parts(parts: Sequence[RolloutGroup]) -> None:
    if not parts:
        raise ValueError("merge_parts needs at least one part")
    prompt_ids = {part.prompt.prompt_id for part in parts}
    if len(prompt_ids) > 1:
        raise ValueError(f"parts of different prompts cannot be merged: {sorted(prompt_ids)}")
    if any(part.reward_parts for part in parts):
        raise ValueError(f"parts of prompt {parts[0].prompt.prompt_id} have rewards already")


def _token_fields(
    groups: Sequence[RolloutGroup], samples: Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """Per-token fields of these samples, one after the other.

    The fields of a group are flat, [N] over all its samples. They are cut into one row per sample,
    and the rows are joined in the new order.

    Args:
        samples: number of the group, and place of the sample in it.
    """

    def joined(per_group: Sequence[Tensor]) -> Tensor:
        rows = [t.split(g.lengths.tolist()) for t, g in zip(per_group, groups, strict=True)]
        # The empty slice keeps the dtype if there is no sample.
        return torch.cat([per_group[0][:0], *(rows[n][p] for n, p in samples)])

    fields: dict[str, Any] = {
        name: joined([getattr(group, name) for group in groups]) for name in _TOKEN_FIELDS
    }
    # Parts may have supports of different widths, and a part without a sample has no steps.
    sizes = [group.token_ids.shape[0] for group in groups]
    supports = [group.support_token_ids if group.num_samples else None for group in groups]
    support = join_supports(supports, sizes)
    if support is not None:
        fields["support_token_ids"] = joined(support.split(sizes))
    if any(group.steps is not None for group in groups):
        steps = [_steps(group) for group in groups]
        fields["steps"] = GroupSteps(
            **{name: joined([getattr(part, name) for part in steps]) for name in _STEP_FIELDS}
        )
    return fields


def _steps(group: RolloutGroup) -> GroupSteps:
    if group.steps is not None:
        return group.steps
    assert group.num_samples == 0, "some parts of a group have steps, and some have not"
    return GroupSteps(
        text_ends=torch.zeros(0, dtype=torch.int32),
        rewards=torch.zeros(0, dtype=torch.float64),
        ends=torch.zeros(0, dtype=torch.bool),
    )
