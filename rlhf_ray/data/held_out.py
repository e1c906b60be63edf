"""The source of held-out prompts."""

from __future__ import annotations

import dataclasses

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.groups.evaluation import EvaluationConfig


def held_out_data(evaluation: EvaluationConfig, data: DataConfig) -> DataConfig:
    """The source of the held-out prompts.

    A setting that `evaluation` leaves out is that of the prompts that are trained on, except that
    a limit of the training prompts does not limit another source.
    """
    limit = evaluation.limit if has_own_prompts(evaluation) else evaluation.limit or data.limit
    return dataclasses.replace(
        data,
        path=evaluation.path or data.path,
        split=evaluation.split or data.split,
        limit=limit,
    )


def has_own_prompts(evaluation: EvaluationConfig) -> bool:
    """Whether the held-out prompts come from another source than `data`."""
    return evaluation.path is not None or evaluation.split is not None
