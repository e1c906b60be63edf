"""Selection of prompts, groups and samples, and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Products such as 10 x 1.1 are a little more than they should be.
_ROUNDING = 1e-9


@dataclass
class RolloutSelectionConfig:
    """Choice of prompts, groups and samples between data and advantages; off by default.

    docs/algorithms.md explains every part and its source.
    """

    dynamic: bool = setting(
        False,
        "Replace groups whose rewards are all equal by new prompts (DAPO's dynamic sampling).",
    )
    max_replacements_per_step: int = setting(
        64,
        "Most new prompts per step that dynamic sampling starts; after that, groups of equal "
        "rewards fill the batch.",
        unit="prompts",
        minimum=1,
    )
    oversample: float = setting(
        1.0,
        "Start prompts_per_step times this many prompts, train on the groups that finish first "
        "and cancel the others, which come first in the next batch; 1 is off.",
        minimum=1,
        maximum=16,
    )
    max_cancellations: int = setting(
        2,
        "Most cancellations of one prompt by over-sampling; after that the batch waits for it.",
        unit="times",
        minimum=1,
    )
    curriculum: bool = setting(
        False, "Draw prompts weighted by their recent success rate; see the keys below."
    )
    curriculum_target: float = setting(
        0.5, "Success rate with the largest weight, 1.", above=0, below=1
    )
    curriculum_min_weight: float = setting(
        0.1, "Least weight of a prompt.", minimum=0.01, maximum=1
    )
    curriculum_recency: float = setting(
        0.5, "Weight of the newest group in a prompt's success rate.", above=0, maximum=1
    )
    success_reward: float = setting(1.0, "Least reward of a successful sample, for the curriculum.")
    overlong_buffer_tokens: int = setting(
        0,
        "Soft over-long punishment (DAPO): buffer before generation.max_response_tokens in which "
        "the penalty of a response grows linearly to overlong_penalty; 0 is off.",
        unit="tokens",
        minimum=0,
    )
    overlong_penalty: float = setting(
        1.0, "Penalty on the reward of a response of full length.", above=0
    )
    overlong_filter: bool = setting(
        False, "Exclude responses that were cut off at the limit from the gradient."
    )
    task_weights: dict[str, float] = setting(
        {}, "Factor of the advantages by name of the task (data.source_column); 1 if not named."
    )
    replay_groups_per_step: int = setting(
        0,
        "Groups of earlier steps with differing rewards to train on again; 0 is off.",
        unit="groups",
        minimum=0,
    )
    replay_capacity: int = setting(
        64, "Most groups that the driver keeps for replay.", unit="groups", minimum=1
    )
    replay_max_staleness: int = setting(
        4,
        "Staleness limit of replayed groups: publishes between a token's weights and the newest.",
        unit="versions",
        minimum=1,
    )
    exact_resume: bool = setting(
        True,
        "Refuse settings that make a resumed synchronous run differ from an uninterrupted one; "
        "false accepts the difference.",
    )

    def prompts_to_start(self, prompts_per_step: int) -> int:
        """Number of prompts that a batch starts with."""
        return math.ceil(prompts_per_step * self.oversample - _ROUNDING)
