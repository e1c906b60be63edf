"""The builder: experience, rollout files and an evaluation's numbers from scored groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import Resources
from rlhf_ray.cluster.roles.base import Role, call_of, start_actors
from rlhf_ray.cluster.runtime.process import ActorProcess

if TYPE_CHECKING:
    from rlhf_ray.checkpoint_files.manifest import FileSeal
    from rlhf_ray.cluster.runtime.supervisor import Member
    from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
    from rlhf_ray.config.groups.rollout_selection import RolloutSelectionConfig
    from rlhf_ray.config.groups.training import CriticConfig, TrainingConfig
    from rlhf_ray.records import Coefficients, RolloutGroup

# The builder turns groups into experience: tensors of a few megabytes, on no GPU.
_NUM_CPUS = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class BuilderSettings:
    """Settings of the builder; see `experience.builder.ExperienceBuilder`.

    Attributes:
        learner, critic: the roles among whose ranks experience is divided; None without a critic.
        max_response_tokens: of the run, for the penalty of overlong answers.
    """

    algorithm: AlgorithmConfig
    rollout_selection: RolloutSelectionConfig
    learner: TrainingConfig
    critic: CriticConfig | None
    old_logprobs_from: OldLogprobsFrom
    max_response_tokens: int
    seed: int


def builder_role(settings: BuilderSettings) -> Role:
    """The builder of a run."""
    return Role(
        resources=Resources(role="builder", num_actors=1, num_cpus=_NUM_CPUS, num_gpus=0.0),
        actor_class=BuilderActor,
        settings=lambda _: settings,
        start=start_actors,
    )


class BuilderActor(ActorProcess):
    """Turns scored groups into experience, measures them, and writes them down."""

    def __init__(self, settings: BuilderSettings) -> None:
        super().__init__()
        from rlhf_ray.batching.rank_plan import rank_plan
        from rlhf_ray.experience.builder import ExperienceBuilder
        from rlhf_ray.experience.reward_shaping import RewardShaping
        from rlhf_ray.experience.waiting_groups import WaitingGroupFiles

        self._waiting = WaitingGroupFiles()
        selection, critic = settings.rollout_selection, settings.critic
        self._worker = ExperienceBuilder(
            algorithm=settings.algorithm,
            learner=rank_plan(settings.learner),
            critic=None if critic is None else rank_plan(critic),
            old_logprobs_from=settings.old_logprobs_from,
            seed=settings.seed,
            shaping=RewardShaping(
                max_response_tokens=settings.max_response_tokens,
                overlong_buffer_tokens=selection.overlong_buffer_tokens,
                overlong_penalty=selection.overlong_penalty,
                overlong_filter=selection.overlong_filter,
                task_weights=selection.task_weights,
            ),
        )

    def start(self) -> None:
        """Do nothing; the answer says that the process is up."""

    def build(
        self, step: int, coefficients: Coefficients, counts: dict[str, int], *parts: Any
    ) -> tuple[Any, ...]:
        """Metrics, then the experience of every group of learner ranks, then of critic ranks.

        Args:
            counts: how many of `parts` are groups, and how many are per-token values by which
                role, in this order: groups, reference, values, old.
        """
        remaining = iter(parts)
        taken = {name: [next(remaining) for _ in range(n)] for name, n in counts.items()}
        batch = self._worker.build(step=step, coefficients=coefficients, **taken)
        return (batch.metrics, *batch.learner, *batch.critic)

    def write_rollouts(self, path: Path, num_groups: int, *parts: Any) -> None:
        """See `ExperienceBuilder.write_rollouts`.

        Args:
            parts: `num_groups` groups, then each learner rank's values of some of them.
        """
        self._worker.write_rollouts(path, parts[:num_groups], parts[num_groups:])

    def finish_rollouts(self) -> None:
        self._worker.finish_rollouts()

    def save_groups(self, path: Path, in_background: bool, *groups: RolloutGroup) -> None:
        self._waiting.save(path, groups, in_background=in_background)

    def written_groups(self, wait_s: float) -> dict[str, FileSeal] | None:
        return self._waiting.written(wait_s=wait_s)

    def seal_groups(self, folder: Path, sync: bool) -> dict[str, FileSeal]:
        return self._waiting.seal(folder, sync=sync)

    def load_groups(self, path: Path, num_groups: int) -> tuple[Any, ...]:
        summaries, groups = self._waiting.load(path, num_groups)
        return (summaries, *groups)

    def sample_texts(self, *groups: RolloutGroup) -> list[str]:
        return self._worker.sample_texts(groups)

    def measure(self, settings: Any, num_groups: int, *parts: Any) -> Sequence[Any]:
        """See `evaluation.answers.measure_answers`.

        Args:
            parts: `num_groups` groups, then each reference rank's values of them.
        """
        from rlhf_ray.evaluation.answers import measure_answers

        reference = [values for rank in parts[num_groups:] for values in rank]
        return measure_answers(parts[:num_groups], reference, settings)

    def close(self) -> None:
        """Do nothing: the builder holds nothing between calls."""


class BuilderGroup:
    """The one worker that turns groups into experience.

    Args:
        num_learners, num_critics: shares of the experience: one for every group of ranks.
    """

    def __init__(self, member: Member, *, num_learners: int, num_critics: int) -> None:
        self._member = member
        self._num_learners = num_learners
        self._num_critics = num_critics

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[Any],
        reference: Sequence[Any],
        values: Sequence[Any],
        old: Sequence[Any],
    ) -> Call:
        """Signal: metrics. Payload: `(learner, critic)`, references to the shares of each."""
        counts = {
            "groups": len(groups),
            "reference": len(reference),
            "values": len(values),
            "old": len(old),
        }
        num_returns = 1 + self._num_learners + self._num_critics
        method = self._member.handle.build.options(num_returns=num_returns)
        refs = method.remote(step, coefficients, counts, *groups, *reference, *values, *old)
        metrics, *experiences = refs
        learner = tuple(experiences[: self._num_learners])
        critic = tuple(experiences[self._num_learners :])
        return Call(member=self._member.name, signal=metrics, payload=(learner, critic))

    def measure(self, groups: Sequence[Any], reference: Sequence[Any], settings: Any) -> Call:
        """Measure scored groups. Signal: the result of `evaluation.answers.measure_answers`.

        Args:
            reference: payloads of `RankGroup.score` for the same groups; none without a reference.
        """
        method = self._member.handle.measure
        return call_of(self._member, method.remote(settings, len(groups), *groups, *reference))

    def write_rollouts(
        self, path: Path, groups: Sequence[Any], updated: Sequence[Any] = ()
    ) -> Call:
        """Begin to write a file, in a thread; a failure shows in the next call of this or the next.

        The call waits for the groups, and for earlier files only when several of them wait.

        Args:
            updated: payloads of `RankGroup.score` for some of the groups, after the update.
        """
        method = self._member.handle.write_rollouts
        return call_of(self._member, method.remote(path, len(groups), *groups, *updated))

    def finish_rollouts(self) -> Call:
        """Wait until all files are written."""
        return call_of(self._member, self._member.handle.finish_rollouts.remote())

    def save_groups(self, path: Path, groups: Sequence[Any], *, in_background: bool) -> Call:
        """Write groups to a file of a checkpoint, or begin to in a thread.

        One file after the other, so that the builder holds the groups of one (in the background of
        all) at a time.
        """
        method = self._member.handle.save_groups
        return call_of(self._member, method.remote(path, in_background, *groups))

    def written_groups(self, *, wait_s: float) -> Call:
        """Signal: `FileSeal` by name of the files that were begun; None if one is not written."""
        return call_of(self._member, self._member.handle.written_groups.remote(wait_s))

    def seal_groups(self, folder: Path, *, sync: bool) -> Call:
        """Signal: `FileSeal` by name of all files of the folder."""
        return call_of(self._member, self._member.handle.seal_groups.remote(folder, sync))

    def load_groups(self, path: Path, num_groups: int) -> Call:
        """Signal: the summaries of a file's groups. Payload: references to them."""
        method = self._member.handle.load_groups.options(num_returns=1 + num_groups)
        summaries, *groups = method.remote(path, num_groups)
        return Call(member=self._member.name, signal=summaries, payload=tuple(groups))

    def sample_texts(self, groups: Sequence[Any]) -> Call:
        """Signal: for the terminal, the best and the worst answer of every group."""
        return call_of(self._member, self._member.handle.sample_texts.remote(*groups))
