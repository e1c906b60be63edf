"""Pure functions on groups before and during scoring: merge parts, drop samples, add rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhf_ray.records import RolloutGroup, SampleFailure
from rlhf_ray.records.kept_tokens import join_kept
from rlhf_ray.rewards.answers import Answer, outcome
from rlhf_ray.rewards.steps import with_steps

_TOKEN_FIELDS = (
    "token_ids",
    "loss_mask",
    "generator_logprobs",
    "kept_token_ids",
    "weight_versions",
    "text_ends",
    "step_rewards",
    "step_ends",
)


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
    fields = _token_fields(*parts)
    # Token fields are flat, [N] over all samples of a part. They are cut into one row per sample,
    # and the rows are joined again in the new order.
    rows = {name: [_rows(part, name) for part in parts] for name in fields}
    first = parts[0]
    return replace(
        first,
        sample_indices=indices,
        lengths=_concatenate(first.lengths, [parts[n].lengths[p : p + 1] for _, n, p in samples]),
        responses=tuple(parts[n].responses[p] for _, n, p in samples),
        finish_reasons=tuple(parts[n].finish_reasons[p] for _, n, p in samples),
        failures=tuple(
            failure
            for part in parts
            for failure in part.failures
            if failure.sample_index not in indices
        ),
        **{
            name: _concatenate(_tokens(first, name), [rows[name][n][p] for _, n, p in samples])
            for name in fields
        },
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
        **{
            name: _concatenate(_tokens(group, name), [_rows(group, name)[p] for p in keep])
            for name in _token_fields(group)
        },
    )


def with_rewards(
    group: RolloutGroup, parts: Mapping[str, Sequence[Answer]], weights: Mapping[str, float]
) -> RolloutGroup:
    """The group with its rewards, [G] float64: the weighted sum of the parts.

    In a run that trains on steps (the group has `text_ends`) the rewards of the steps are set too.

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
    return with_steps(group, parts, weights) if group.text_ends.shape[0] else group


def _check_parts(parts: Sequence[RolloutGroup]) -> None:
    if not parts:
        raise ValueError("merge_parts needs at least one part")
    prompt_ids = {part.prompt.prompt_id for part in parts}
    if len(prompt_ids) > 1:
        raise ValueError(f"parts of different prompts cannot be merged: {sorted(prompt_ids)}")
    if any(part.reward_parts for part in parts):
        raise ValueError(f"parts of prompt {parts[0].prompt.prompt_id} have rewards already")


def _token_fields(*groups: RolloutGroup) -> list[str]:
    """The fields that any of them has; the ends of texts and steps may be missing from all."""
    return [name for name in _TOKEN_FIELDS if any(_tokens(g, name).shape[0] for g in groups)]


def _tokens(group: RolloutGroup, name: str) -> Tensor:
    return getattr(group, name)


def _rows(group: RolloutGroup, name: str) -> tuple[Tensor, ...]:
    return _tokens(group, name).split(group.lengths.tolist())


def _concatenate(like: Tensor, rows: list[Tensor]) -> Tensor:
    """Concatenate the rows; without rows, an empty tensor of the same kind as `like`."""
    if not rows:
        return like[:0]
    # Parts may have kept different numbers of tokens.
    return join_kept(rows) if like.dim() == 2 else torch.cat(rows)
