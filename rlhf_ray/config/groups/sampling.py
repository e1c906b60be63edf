"""Which prompts are sampled, which groups are trained on, and how much each counts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_ray.config.setting import setting

# Products such as 10 x 1.1 are a little more than they should be.
_ROUNDING = 1e-9


@dataclass
class SamplingConfig:
    """Sampling control, between prompts and advantages; all of it off by default. What each part
    does, and its source, is in docs/algorithms.md."""

    dynamic: bool = setting(
        False,
        "Replace groups whose rewards are all equal by new prompts (DAPO's dynamic sampling).",
    )
    max_replacements_per_step: int = setting(
        64,
        "New prompts that dynamic sampling may start for one step; then the batch is filled up "
        "with groups of equal rewards.",
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
        "A prompt that over-sampling has cancelled so often is waited for.",
        unit="times",
        minimum=1,
    )
    curriculum: bool = setting(
        False, "Draw prompts with weights by their recent rate of success; see the keys below."
    )
    curriculum_target: float = setting(
        0.5, "Rate of success that has the full weight, 1.", above=0, below=1
    )
    curriculum_min_weight: float = setting(
        0.1, "Least weight of a prompt, so that none is lost from sight.", minimum=0.01, maximum=1
    )
    curriculum_recency: float = setting(
        0.5, "Share of the newest group in a prompt's rate of success.", above=0, maximum=1
    )
    success_reward: float = setting(
        1.0, "A sample with at least this reward is a success, for the curriculum."
    )
    overlong_buffer_tokens: int = setting(
        0,
        "Soft over-long punishment (DAPO): a response loses up to overlong_penalty, linearly, in "
        "its last so many tokens before generation.max_response_tokens; 0 is off.",
        unit="tokens",
        minimum=0,
    )
    overlong_penalty: float = setting(
        1.0, "What a response of full length loses of its reward.", above=0
    )
    overlong_filter: bool = setting(
        False, "Responses that were cut off at the limit get no gradient."
    )
    task_weights: dict[str, float] = setting(
        {}, "Factor of the advantages of a task (data.source_column), by its name; 1 if not named."
    )
    replay_groups_per_step: int = setting(
        0,
        "Groups of earlier steps with differing rewards that are trained on once more; 0 is off.",
        unit="groups",
        minimum=0,
    )
    replay_capacity: int = setting(
        64, "Groups that the driver keeps for replay.", unit="groups", minimum=1
    )
    replay_max_staleness: int = setting(
        4,
        "How many publishes older than the newest weights a token of a replayed group may be.",
        unit="versions",
        minimum=1,
    )
    exact_resume: bool = setting(
        True,
        "Refuse what makes a resumed synchronous run differ from an uninterrupted one; false "
        "accepts the difference.",
    )

    def prompts_to_start(self, prompts_per_step: int) -> int:
        """Prompts that a batch starts with."""
        return math.ceil(prompts_per_step * self.oversample - _ROUNDING)
