"""Records of rollouts: prompts, groups of samples, what the driver sees of a group.

Per-token data is ragged: flat `[N]` tensors with `lengths [G]`, prompt and
response together, every entry aligned with the token it describes.
`logprobs[i]` is the log-probability of `token_ids[i]` given what precedes it,
0.0 where that is undefined or not sampled. No padding travels.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rlhf_ray.prompt_choice import prompt_rank
from rlhf_ray.records.checks import check_count, check_lengths, check_shape, check_support
from rlhf_ray.records.travel import TravellingRecord


class FailureKind(enum.StrEnum):
    """Kinds of failures of one sample. A failure is never a reward."""

    GENERATION_ERROR = "generation_error"
    GENERATION_TIMEOUT = "generation_timeout"
    GENERATION_ABORTED = "generation_aborted"
    REWARD_ERROR = "reward_error"
    REWARD_TIMEOUT = "reward_timeout"
    REWARD_NOT_FINITE = "reward_not_finite"
    REWARD_WORKER_LOST = "reward_worker_lost"
    REWARD_LIMIT = "reward_limit"
    REWARD_PROTOCOL = "reward_protocol"


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleFailure:
    """The reason why one sample of a group has no reward."""

    prompt_id: str
    sample_index: int
    kind: FailureKind
    message: str

    def __str__(self) -> str:
        return f"prompt {self.prompt_id}, sample {self.sample_index}: {self.kind}: {self.message}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt, tokenised once.

    Attributes:
        prompt_id: unique within a run: epoch and row.
        stream_index: position in the prompt stream; orders a batch.
        text: the prompt as the engine sees it (chat template applied), for logs and rewards.
        token_ids: the same as token ids.
        answer: reference answer for rewards, or None.
        source: name of the task.
        seed: seed of this prompt's samples, from run seed and prompt id.
        columns: the row's other columns, for rewards.
        messages: the prompt as a chat, the system message included; a plain text is one message of
            the user. For reward models and judges, which have their own tokenizer and template.
        tools: functions that the answer may call, as the chat template got them.
    """

    prompt_id: str
    stream_index: int
    text: str
    token_ids: tuple[int, ...]
    answer: str | None
    source: str
    seed: int
    columns: dict[str, Any]
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSteps(TravellingRecord):
    """Steps of the answers of a group, in a run that trains on rewards of steps.

    Attributes:
        text_ends [N] int32: characters of the response up to the token's end; 0 off the mask.
        rewards [N] float64: reward of every step, on the step's last token; 0.0 elsewhere, and
            everywhere before scoring.
        ends [N] bool: True on the last token of every step; False everywhere before scoring.
    """

    text_ends: Tensor
    rewards: Tensor
    ends: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutGroup(TravellingRecord):
    """All samples of one prompt: the unit of work.

    Attributes:
        sample_indices [G]: which of the prompt's samples these are; failed ones are absent.
        token_ids [N] int64: prompt and response of each sample, one after the other.
        lengths [G] int64: tokens per sample; sums to N.
        loss_mask [N] bool: True on sampled tokens.
        generator_logprobs [N] float32: by the engine, under the sampling distribution
            (temperature, top-p, top-k, min-p); 0.0 off the mask.
        support_token_ids [N, K] int32: support of the sampling distribution, filled up with -1,
            -1 off the mask; None for the whole vocabulary.
        weight_versions [N] int64: which publish sampled the token; -1 off the mask.
        responses [G]: decoded responses, for rewards and logs only.
        finish_reasons [G]: "stop" or "length".
        rewards [G] float64: weighted sum of the parts; empty before scoring.
        reward_parts: name to [G] float64, unweighted.
        failures: samples of this prompt that have no result.
        steps: None in a run that does not train on rewards of steps.
    """

    prompt: Prompt
    sample_indices: tuple[int, ...]
    token_ids: Tensor
    lengths: Tensor
    loss_mask: Tensor
    generator_logprobs: Tensor
    support_token_ids: Tensor | None
    weight_versions: Tensor
    responses: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    rewards: Tensor
    reward_parts: dict[str, Tensor]
    failures: tuple[SampleFailure, ...]
    steps: GroupSteps | None = None

    def __post_init__(self) -> None:
        num_tokens, num_samples = self.token_ids.shape[0], self.lengths.shape[0]
        for name in ("loss_mask", "generator_logprobs", "weight_versions"):
            check_shape(name, getattr(self, name), (num_tokens,))
        if self.steps is not None:
            for name in ("text_ends", "rewards", "ends"):
                check_shape(f"steps.{name}", getattr(self.steps, name), (num_tokens,))
        check_support(self.support_token_ids, num_tokens)
        for name in ("sample_indices", "responses", "finish_reasons"):
            check_count(name, getattr(self, name), num_samples)
        check_lengths(self.lengths, num_tokens)
        if self.is_scored:
            for name, part in self.reward_parts.items():
                check_shape(f"reward_parts[{name}]", part, (num_samples,))
        elif self.rewards.shape[0]:
            raise ValueError(f"{self.rewards.shape[0]} rewards for {num_samples} samples")

    @property
    def num_samples(self) -> int:
        return self.lengths.shape[0]

    @property
    def is_scored(self) -> bool:
        return self.rewards.shape[0] == self.num_samples

    def rewards_of_steps(self) -> tuple[tuple[float, ...], ...]:
        """Rewards of the steps of every sample; empty in a run that does not train on steps."""
        if self.steps is None:
            return ()
        lengths = self.lengths.tolist()
        pieces = zip(self.steps.rewards.split(lengths), self.steps.ends.split(lengths), strict=True)
        return tuple(tuple(rewards[ends].tolist()) for rewards, ends in pieces)

    def summary(self) -> GroupSummary:
        """The scalars that the driver may see."""
        mask = self.loss_mask
        versions = self.weight_versions[mask]
        per_sample = mask.split(self.lengths.tolist())
        return GroupSummary(
            prompt_id=self.prompt.prompt_id,
            stream_index=self.prompt.stream_index,
            source=self.prompt.source,
            sample_lengths=tuple(self.lengths.tolist()),
            response_lengths=tuple(int(part.sum()) for part in per_sample),
            finish_reasons=self.finish_reasons,
            rewards=tuple(self.rewards.tolist()),
            reward_parts={name: tuple(part.tolist()) for name, part in self.reward_parts.items()},
            oldest_version=int(versions.min()) if versions.numel() else -1,
            newest_version=int(versions.max()) if versions.numel() else -1,
            failures=self.failures,
            step_rewards=self.rewards_of_steps(),
            prompt_rank=prompt_rank(self.prompt.text),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenValues(TravellingRecord):
    """A per-token quantity of one group, computed by a scoring role.

    Attributes:
        values [N] float32: aligned with the group's tokens: a log-probability or a value
            estimate on sampled tokens, 0.0 elsewhere.
        final_values [G] float32: value of the state after each sample's last token, 0.0 where the
            answer is over; None unless bootstrapping is on.
        support_logprobs [N, K] float32: log-probabilities over the support of the sampling
            distribution, -inf on filled up entries and off the mask; None unless the KL of whole
            distributions is on.
    """

    prompt_id: str
    values: Tensor
    final_values: Tensor | None = None
    support_logprobs: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSummary:
    """Summary of a scored group for the driver: per-sample scalars, no per-token data.

    `step_rewards` has the steps of every sample; it is empty in a run that does not train on steps.
    `prompt_rank` chooses the prompts whose tokens are recorded; see `prompt_choice`.
    """

    prompt_id: str
    stream_index: int
    source: str
    sample_lengths: tuple[int, ...]
    response_lengths: tuple[int, ...]
    finish_reasons: tuple[str, ...]
    rewards: tuple[float, ...]
    reward_parts: dict[str, tuple[float, ...]]
    oldest_version: int
    newest_version: int
    failures: tuple[SampleFailure, ...]
    step_rewards: tuple[tuple[float, ...], ...] = ()
    prompt_rank: int = 0

    @property
    def compared(self) -> tuple[float, ...]:
        """Rewards that a baseline of the group compares: of all steps, or of the samples."""
        return tuple(r for steps in self.step_rewards for r in steps) or self.rewards

    def of_first(self, num_samples: int) -> GroupSummary:
        """Restrict rewards and responses to the first samples of the group."""
        return dataclasses.replace(
            self,
            response_lengths=self.response_lengths[:num_samples],
            finish_reasons=self.finish_reasons[:num_samples],
            rewards=self.rewards[:num_samples],
            reward_parts={name: part[:num_samples] for name, part in self.reward_parts.items()},
            step_rewards=self.step_rewards[:num_samples],
        )
