"""The roles as the driver calls them: one protocol per role.

The facades of `cluster.roles` implement them over Ray actors, the fakes of `testing` in this
process. Every method returns at once with a `Call` per worker, unless it says otherwise; a
`calls.CallWaiter` waits for them. Arguments named `groups`, `experiences` or `bucket` are
references to large values, which go from worker to worker and never through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf_ray.calls import Call
from rlhf_ray.evaluation.answers import MeasureSettings
from rlhf_ray.losses import Lost
from rlhf_ray.publish.base import EnginePart, LearnerPart, WeightReceivers
from rlhf_ray.publish.publisher import PublishedEngines, PublishedPolicy
from rlhf_ray.records import Coefficients, GroupSummary, Prompt


class PromptSource(Protocol):
    """An endless, resumable stream of prompts. See `data.prompts`."""

    def next(self) -> Prompt: ...
    def record(self, outcome: GroupSummary) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class TokenScorer(Protocol):
    """Ranks that compute a number per token: a log-probability or a value."""

    def score(self, groups: Sequence[Any], num_tokens: Sequence[int]) -> list[Call]:
        """Score groups; `num_tokens` of each balances the ranks. Payload: `list[TokenValues]`."""
        ...


class Checkpointed(Protocol):
    """A role with a folder in every checkpoint."""

    def save_checkpoint(self, folder: Path) -> list[Call]: ...
    def load_checkpoint(self, folder: Path) -> list[Call]: ...
    def seal_checkpoint(self, folder: Path, *, sync: bool) -> list[Call]:
        """Hash the role's files. Signal: `FileSeal` by path; the shares of all ranks are all."""
        ...

    def begin_checkpoint(self, folder: Path) -> list[Call]:
        """Copy the state to host memory, and write it in a thread while the role goes on."""
        ...

    def written_checkpoint(self, *, wait_s: float) -> list[Call]:
        """Ask for the files of `begin_checkpoint`. Signal: as of `seal_checkpoint`, or None.

        None means that they are not written after `wait_s` seconds.
        """
        ...


class SamplingEngines(Protocol):
    """Engines that take requests, by their places: all, or those of a fleet (`driver.fleet`)."""

    @property
    def names(self) -> Sequence[Any]: ...
    @property
    def serving(self) -> Sequence[int]:
        """Engines that take requests now; none while the only one is replaced."""
        ...

    def ensure_serving(self) -> None:
        """Wait until an engine takes requests. Raises RunFailed if none will."""
        ...

    def issued_again(self, lost: Lost) -> None:
        """A request of a lost engine goes to another one."""
        ...

    def generate(
        self, engine: int, prompt: Prompt, sample_indices: tuple[int, ...], *, together: int = 0
    ) -> Call:
        """Sample a prompt. With `together`, that many samples of the engine start in one step."""
        ...

    def abort(self, engine: int, prompt_ids: Sequence[str]) -> Call: ...
    def statistics(self) -> list[Call]: ...


class GeneratorRole(SamplingEngines, PublishedEngines, Protocol):
    """The engines. See `cluster.engines.group.GeneratorGroup`."""

    def score_shares(self, shares: Sequence[list[tuple[int, ...]]]) -> list[Call]: ...
    def sleep(self) -> list[Call]: ...
    def wake_up(self, part: EnginePart) -> list[Call]: ...


class RewardRole(Protocol):
    """The reward workers. See `cluster.roles.rewards.RewardGroup`."""

    @property
    def names(self) -> Sequence[Any]: ...
    def score(self, worker: int, parts: Sequence[Any]) -> Call: ...


class LearnerRole(TokenScorer, Checkpointed, PublishedPolicy, Protocol):
    """The policy in training. See `cluster.roles.learner.LearnerGroup`."""

    def update(
        self, experiences: Sequence[Any], *, texts: Sequence[Any], coefficients: Coefficients
    ) -> list[Call]: ...
    def weight_shapes(self) -> Call: ...
    def offload_states(self, part: LearnerPart) -> list[Call]: ...
    def reload_states(self) -> list[Call]: ...


class CriticRole(TokenScorer, Checkpointed, Protocol):
    """The value model in training. See `cluster.roles.critic.CriticGroup`."""

    def update(self, experiences: Sequence[Any]) -> list[Call]: ...


class ReferenceRole(TokenScorer, Checkpointed, WeightReceivers, Protocol):
    """The frozen policy, which may take weights. See `cluster.roles.reference.ReferenceGroup`."""

    def check_weights(self, shapes: dict[str, tuple[int, ...]]) -> list[Call]: ...


class BuilderRole(Protocol):
    """The worker that turns scored groups into experience. See `cluster.roles.builder`."""

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call: ...
    def measure(
        self, groups: Sequence[Any], reference: Sequence[Any], settings: MeasureSettings
    ) -> Call: ...
    def write_rollouts(
        self, path: Path, groups: Sequence[Any], updated: Sequence[Any] = ()
    ) -> Call: ...
    def finish_rollouts(self) -> Call: ...
    def save_groups(self, path: Path, groups: Sequence[Any], *, in_background: bool) -> Call: ...
    def written_groups(self, *, wait_s: float) -> Call: ...
    def seal_groups(self, folder: Path, *, sync: bool) -> Call: ...
    def load_groups(self, path: Path, num_groups: int) -> Call:
        """Signal: the summaries of a file's groups. Payload: references to the groups."""
        ...

    def sample_texts(self, groups: Sequence[Any]) -> Call: ...


class OfflineRole(Checkpointed, Protocol):
    """The ranks that learn from examples. See `cluster.roles.fit.OfflineGroup`.

    Every method takes one entry of `samples` per rank.
    """

    def update(self, samples: Sequence[Any]) -> list[Call]: ...
    def evaluate(self, samples: Sequence[Any]) -> list[Call]: ...
    def score_answers(self, samples: Sequence[Any]) -> list[Call]: ...
