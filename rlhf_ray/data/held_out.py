"""The source of held-out prompts."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rlhf_ray.config.groups.data import DataConfig
from rlhf_ray.config.groups.evaluation import EvaluationConfig

if TYPE_CHECKING:
    from rlhf_ray.data.prompts.load import PromptSet


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


def shared_lines(held_out: PromptSet, trained: PromptSet) -> list[str]:
    """A warning about held-out prompts that are trained on too; none if there are none.

    Tokens are compared, wherever the rows lie: of two sets of a million prompts in about a second.
    """
    known = {prompt.token_ids for prompt in trained.prompts}
    shared = sum(prompt.token_ids in known for prompt in held_out.prompts)
    if not shared:
        return []
    in_all = len(held_out.prompts)
    return [
        f"warning: {shared:,} of the {in_all:,} held-out prompts ({shared / in_all:.0%}) are "
        f"trained on too: the metrics evaluation/... and the choice of the best model say that "
        f"much less about new prompts"
    ]
