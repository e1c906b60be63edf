"""What the pipeline asks of prompts, engines and reward workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_ray.calls import Call
from rlhf_ray.records import GroupSummary, Prompt


class PromptSource(Protocol):
    """An endless, resumable stream of prompts. See `data.stream`, `data.curriculum`."""

    def next(self) -> Prompt: ...
    def record(self, outcome: GroupSummary) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class GeneratorPool(Protocol):
    """See `cluster.roles.generator.Generators`."""

    @property
    def names(self) -> Sequence[Any]: ...
    def generate(self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...]) -> Call: ...
    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call: ...
    def hold(self) -> list[Call]: ...
    def release(self, num_requests: Sequence[int]) -> list[Call]: ...


class RewardPool(Protocol):
    """See `cluster.roles.rewards.RewardGroup`."""

    @property
    def names(self) -> Sequence[Any]: ...
    def score(self, worker: int, parts: Sequence[Any]) -> Call: ...
