"""Log of every sample of a step, such as rollouts/step_000012.jsonl."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.atomic_file import atomic_file
from rlhf_ray.prompt_choice import best_and_worst, detailed_places, prompt_rank
from rlhf_ray.records import RolloutGroup

MAX_TOKENS = 2000
_DIGITS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenDetails:
    """Numbers of the tokens of few groups, by prompt id, each aligned with the group's tokens.

    Attributes:
        advantages: as the update used them.
        updated_logprobs: of the policy after the update.
    """

    advantages: Mapping[str, Tensor] = field(default_factory=dict)
    updated_logprobs: Mapping[str, Tensor] = field(default_factory=dict)


NO_DETAILS = TokenDetails()


def rollout_path(output_dir: Path, step: int) -> Path:
    """File of one step's samples."""
    return output_dir / "rollouts" / f"step_{step:06}.jsonl"


def rollout_rows(
    groups: Sequence[RolloutGroup], details: TokenDetails = NO_DETAILS
) -> list[dict[str, Any]]:
    """One dict of plain JSON values per sample of scored groups.

    `weight_versions` are spans [[version, number of tokens], ...] over the sampled tokens. In a
    run that trains on steps, `steps` are spans too: [[reward, tokens, characters], ...].

    The best and the worst sample of a few groups have `tokens`, too: `ids` of the response, and
    `logprobs` of the engine, None for a token that was not sampled, or where it is not finite. At
    most `MAX_TOKENS` of each. Where they are known they have `advantages` and `updated_logprobs`,
    in the same form.
    """
    detailed = _detailed(groups)
    return [row for g in groups for row in _group_rows(g, details, id(g) in detailed)]


def write_rollouts(
    path: Path, groups: Sequence[RolloutGroup], details: TokenDetails = NO_DETAILS
) -> None:
    """Write the samples to a file, which appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    detailed = _detailed(groups)
    with atomic_file(path) as file:
        # Group by group: the rows of a whole batch may be gigabytes.
        for group in groups:
            for row in _group_rows(group, details, id(group) in detailed):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def detailed_groups(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """The groups whose tokens are written: those of the same prompts in every step."""
    return [groups[i] for i in detailed_places([prompt_rank(g.prompt.text) for g in groups])]


def _detailed(groups: Sequence[RolloutGroup]) -> set[int]:
    return {id(group) for group in detailed_groups(groups)}


def _group_rows(
    group: RolloutGroup, details: TokenDetails, has_tokens: bool
) -> list[dict[str, Any]]:
    assert group.is_scored
    lengths = group.lengths.tolist()
    masks = group.loss_mask.split(lengths)
    versions = [
        part[mask].tolist()
        for part, mask in zip(group.weight_versions.split(lengths), masks, strict=True)
    ]
    rewards = group.rewards.tolist()
    parts = {name: values.tolist() for name, values in group.reward_parts.items()}
    steps = _steps(group)
    tokens = _tokens(group, details, best_and_worst(rewards)) if has_tokens else {}
    return [
        {
            "prompt_id": group.prompt.prompt_id,
            "prompt": group.prompt.text,
            "sample_index": sample_index,
            "response": group.responses[position],
            "reward": rewards[position],
            "reward_parts": {name: values[position] for name, values in parts.items()},
            "weight_versions": _spans(versions[position]),
            "finish_reason": group.finish_reasons[position],
            "response_tokens": len(versions[position]),
            **({"steps": steps[position]} if steps else {}),
            **({"tokens": tokens[position]} if position in tokens else {}),
        }
        for position, sample_index in enumerate(group.sample_indices)
    ]


def _tokens(
    group: RolloutGroup, details: TokenDetails, positions: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """Tokens of the responses at these positions, and how likely the engine found each."""
    lengths = group.lengths.tolist()
    prompt_id, size = group.prompt.prompt_id, group.token_ids.shape[0]
    of_group = {
        "logprobs": group.generator_logprobs,
        "advantages": details.advantages.get(prompt_id),
        "updated_logprobs": details.updated_logprobs.get(prompt_id),
    }
    # Those of another group of this name are of no use.
    numbers = {k: v for k, v in of_group.items() if v is not None and v.shape[0] == size}
    found: dict[int, dict[str, Any]] = {}
    for position in positions:
        start = sum(lengths[:position]) + len(group.prompt.token_ids)
        end = min(sum(lengths[: position + 1]), start + MAX_TOKENS)
        sampled = group.loss_mask[start:end].tolist()
        found[position] = {"ids": group.token_ids[start:end].tolist()} | {
            name: [
                round(value, _DIGITS) if is_sampled and math.isfinite(value) else None
                for value, is_sampled in zip(values[start:end].tolist(), sampled, strict=True)
            ]
            for name, values in numbers.items()
        }
    return found


def _steps(group: RolloutGroup) -> list[list[list[float]]]:
    """Steps of every sample: reward, sampled tokens, characters; [] if the run has no steps."""
    found: list[list[list[float]]] = []
    start = 0
    steps = group.steps
    if steps is None:
        return found
    for length in group.lengths.tolist():
        sampled = group.loss_mask[start : start + length].nonzero()[:, 0] + start
        start += length
        ends = steps.ends[sampled].nonzero()[:, 0]
        tokens = torch.diff(ends + 1, prepend=torch.zeros(1, dtype=ends.dtype))
        texts = steps.text_ends[sampled][ends]
        characters = torch.diff(texts, prepend=torch.zeros(1, dtype=texts.dtype))
        columns = (steps.rewards[sampled][ends], tokens, characters)
        found.append([list(step) for step in zip(*(c.tolist() for c in columns), strict=True)])
    return found


def _spans(versions: list[int]) -> list[list[int]]:
    """Runs of equal versions: [5, 5, 6] gives [[5, 2], [6, 1]]."""
    return [[version, len(list(run))] for version, run in groupby(versions)]
