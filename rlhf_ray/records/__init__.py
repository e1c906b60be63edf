"""Records that travel between workers."""

from __future__ import annotations

from rlhf_ray.records.experience import Coefficients, Experience
from rlhf_ray.records.preferences import Feedback, FeedbackSamples, PreferenceSamples, Ranking
from rlhf_ray.records.rollouts import (
    FailureKind,
    GroupSteps,
    GroupSummary,
    Prompt,
    RolloutGroup,
    SampleFailure,
    TokenValues,
)
from rlhf_ray.records.supervised import LabelledTokens, SupervisedSamples, num_scored_tokens

__all__ = [
    "Coefficients",
    "Experience",
    "FailureKind",
    "Feedback",
    "FeedbackSamples",
    "GroupSteps",
    "GroupSummary",
    "LabelledTokens",
    "PreferenceSamples",
    "Prompt",
    "Ranking",
    "RolloutGroup",
    "SampleFailure",
    "SupervisedSamples",
    "TokenValues",
    "num_scored_tokens",
]
