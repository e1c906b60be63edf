"""Log of every sample of a step, such as rollouts/step_000012.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from rlhf_ray.atomic_file import atomic_file
from rlhf_ray.records import RolloutGroup


def rollout_path(output_dir: Path, step: int) -> Path:
    """File of one step's samples."""
    return output_dir / "rollouts" / f"step_{step:06}.jsonl"


def rollout_rows(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """One dict of plain JSON values per sample of scored groups.

    `weight_versions` are spans [[version, number of tokens], ...] over the sampled tokens. In a
    run that trains on steps, `steps` are spans too: [[reward, tokens, characters], ...].
    """
    return [row for group in groups for row in _group_rows(group)]


def write_rollouts(path: Path, groups: Sequence[RolloutGroup]) -> None:
    """Write the samples to a file, which appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        # Group by group: the rows of a whole batch may be gigabytes.
        for group in groups:
            for row in _group_rows(group):
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def _group_rows(group: RolloutGroup) -> list[dict[str, Any]]:
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
        }
        for position, sample_index in enumerate(group.sample_indices)
    ]


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
