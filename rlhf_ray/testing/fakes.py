"""Prompts, engines and rewards that live in this process: the driver without Ray.

They implement the protocols of `driver.roles`; `fake_roles.py` has the other roles, and
`fake_waiter.py` the waiter. Calls are done at once; payloads are the objects themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.calls import Call, MemberName
from rlhf_ray.losses import Lost
from rlhf_ray.publish.base import EnginePart
from rlhf_ray.records import (
    FailureKind,
    GroupSteps,
    GroupSummary,
    Prompt,
    RolloutGroup,
    SampleFailure,
)

# The reward of a whole sample, or of each of its two tokens.
FakeReward = float | tuple[float, float]


def done(role: str, rank: int, signal: Any = None, payload: Any = None) -> Call:
    """A call that has its result."""
    return Call(member=MemberName(role=role, rank=rank), signal=signal, payload=payload)


class FakePrompts:
    """Prompts 0, 1, 2, ... without end; resumable.

    `recorded` has the ids of the prompts with a reported outcome, in the order of the reports.
    """

    def __init__(self) -> None:
        self._position = 0
        self.recorded: list[str] = []

    def next(self) -> Prompt:
        prompt = make_prompt(self._position)
        self._position += 1
        return prompt

    def record(self, outcome: GroupSummary) -> None:
        self.recorded.append(outcome.prompt_id)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position = state["position"]


class FakeGenerators:
    """Engines whose samples are two tokens that a test can recognise.

    `events` has the names of all calls but `generate` and `abort`, in order; `together` has the
    engine of every `generate`, and the number of samples that it starts in one step.

    Args:
        fails: whether a sample fails: (engine, prompt, sample index) to bool.
    """

    def __init__(
        self, num_engines: int = 1, fails: Callable[[int, Prompt, int], bool] = lambda *_: False
    ) -> None:
        self.names = tuple(MemberName(role="generator", rank=i) for i in range(num_engines))
        self.version = 0
        self.requests: list[tuple[int, str, tuple[int, ...]]] = []
        self.aborted: list[tuple[int, tuple[str, ...]]] = []
        self.events: list[str] = []
        self.together: list[tuple[int, int]] = []
        self._fails = fails

    @property
    def serving(self) -> Sequence[int]:
        return range(len(self.names))

    def ensure_serving(self) -> None:
        """No-op: all engines serve."""

    def issued_again(self, lost: Lost) -> None:
        """No-op: no engine is lost; see `fake_fleet`."""

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        self.requests.append((engine, prompt.prompt_id, sample_indices))
        self.together.append((engine, together))
        failed = [i for i in sample_indices if self._fails(engine, prompt, i)]
        failures = tuple(
            SampleFailure(
                prompt_id=prompt.prompt_id,
                sample_index=index,
                kind=FailureKind.GENERATION_ERROR,
                message=f"fake failure on engine {engine}",
            )
            for index in failed
        )
        finished = tuple(index for index in sample_indices if index not in failed)
        group = make_group(prompt, finished, version=self.version, failures=failures)
        return done("generator", engine, signal=failures, payload=group)

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call:
        self.aborted.append((engine, tuple(prompt_ids)))
        return done("generator", engine)

    def statistics(self) -> list[Call]:
        """No statistics: these engines have no scheduler."""
        return []

    def sleep(self) -> list[Call]:
        return self._event("sleep")

    def wake_up(self, part: EnginePart) -> list[Call]:
        return self._event(f"wake_up {part.value}")

    def begin_update(self) -> list[Call]:
        return self._event("begin_update")

    def load_bucket(self, bucket: Any) -> list[Call]:
        return self._event(f"load {bucket}")

    def finish_update(self, version: int) -> list[Call]:
        self.version = version
        return self._event("finish_update")

    def weight_version(self) -> list[Call]:
        return [done("generator", i, signal=self.version) for i in range(len(self.names))]

    def score_sequences(self, sequences: list[tuple[int, ...]]) -> list[Call]:
        return self.score_shares([sequences] * len(self.names))

    def score_shares(self, shares: Sequence[list[tuple[int, ...]]]) -> list[Call]:
        """The log-probability of a token is minus its id."""
        return [
            done("generator", i, signal=[[-float(token) for token in row[1:]] for row in share])
            for i, share in enumerate(shares)
        ]

    def _event(self, name: str) -> list[Call]:
        self.events.append(name)
        return [done("generator", engine) for engine in range(len(self.names))]


class FakeRewards:
    """Reward workers that merge partial groups and score with a function of the prompt.

    Args:
        score: prompt and sample index to a reward, to a pair of rewards for two steps of one
            token each, or to None for a failure.
    """

    def __init__(
        self,
        num_workers: int = 1,
        score: Callable[[Prompt, int], FakeReward | None] = lambda prompt, index: float(index),
    ) -> None:
        self.names = tuple(MemberName(role="reward", rank=i) for i in range(num_workers))
        self.scored: list[tuple[int, str]] = []
        self._score = score

    def score(self, worker: int, parts: Sequence[RolloutGroup]) -> Call:
        prompt = parts[0].prompt
        self.scored.append((worker, prompt.prompt_id))
        finished = tuple(sorted(index for part in parts for index in part.sample_indices))
        lost = {f.sample_index: f for p in parts for f in p.failures}
        failures = [failure for index, failure in lost.items() if index not in finished]
        rewards = [self._score(prompt, index) for index in finished]
        failures += [
            SampleFailure(
                prompt_id=prompt.prompt_id,
                sample_index=index,
                kind=FailureKind.REWARD_ERROR,
                message="fake reward failure",
            )
            for index, reward in zip(finished, rewards, strict=True)
            if reward is None
        ]
        group = make_group(
            prompt,
            tuple(i for i, r in zip(finished, rewards, strict=True) if r is not None),
            version=max(int(v) for part in parts for v in [-1, *part.weight_versions]),
            failures=tuple(failures),
            rewards=[reward for reward in rewards if reward is not None],
        )
        return done("reward", worker, signal=group.summary(), payload=group)


def make_prompt(index: int) -> Prompt:
    """Prompt number `index` of a stream."""
    return Prompt(
        prompt_id=f"e0-r{index}",
        stream_index=index,
        text=f"prompt {index}",
        token_ids=(1, 2),
        answer=None,
        source="fake",
        seed=index,
        columns={},
    )


def make_group(
    prompt: Prompt,
    sample_indices: Sequence[int],
    *,
    version: int,
    failures: tuple[SampleFailure, ...] = (),
    rewards: Sequence[FakeReward] | None = None,
) -> RolloutGroup:
    """A group whose samples are the prompt and two tokens: 10 + sample index, and 0.

    A pair of rewards makes every token a step; rewards are all pairs or all numbers.
    """
    num_prompt, num_samples = len(prompt.token_ids), len(sample_indices)
    rows = [[*prompt.token_ids, 10 + index, 0] for index in sample_indices]
    mask = torch.tensor(([False] * num_prompt + [True, True]) * num_samples, dtype=torch.bool)
    pairs = [reward for reward in rewards or () if isinstance(reward, tuple)]
    scores = torch.tensor(
        [sum(reward) if isinstance(reward, tuple) else reward for reward in rewards or ()],
        dtype=torch.float64,
    )
    return RolloutGroup(
        prompt=prompt,
        sample_indices=tuple(sample_indices),
        token_ids=torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        lengths=torch.full((num_samples,), num_prompt + 2, dtype=torch.int64),
        loss_mask=mask,
        generator_logprobs=torch.where(mask, -0.5, 0.0),
        support_token_ids=None,
        weight_versions=torch.where(mask, version, -1),
        responses=tuple(f"sample {index}" for index in sample_indices),
        finish_reasons=("stop",) * num_samples,
        rewards=scores,
        reward_parts={"fake": scores} if rewards is not None else {},
        failures=failures,
        steps=_token_steps(mask, pairs) if pairs else None,
    )


def _token_steps(mask: Tensor, pairs: Sequence[tuple[float, float]]) -> GroupSteps:
    """One step per sampled token, and a character for each."""
    rewards = torch.zeros(mask.shape[0], dtype=torch.float64)
    rewards[mask] = torch.tensor(pairs, dtype=torch.float64).flatten()
    return GroupSteps(text_ends=mask.int(), rewards=rewards, ends=mask)
