"""The role that builds experience and writes rollout files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.experience.build import ExperienceBatch, build_experience
from rlhf_ray.experience.reward_shaping import RewardShaping
from rlhf_ray.observe.rollout_log import TokenDetails, detailed_groups
from rlhf_ray.observe.rollout_writer import RolloutWriter
from rlhf_ray.observe.samples.sample_lines import answer_lines
from rlhf_ray.prompt_choice import best_and_worst
from rlhf_ray.records import Coefficients, RolloutGroup, TokenValues


class ExperienceBuilder:
    """Builds experience and writes rollout files, away from the driver.

    Args:
        learner, critic: how the ranks of each share the work; None without a critic.
        old_logprobs_from: see `Config.old_logprobs_from`.
        seed: of the run.
        shaping: changes to rewards and masks before the advantages, and task weights after them.
    """

    def __init__(
        self,
        *,
        algorithm: AlgorithmConfig,
        learner: RankPlan,
        critic: RankPlan | None,
        old_logprobs_from: OldLogprobsFrom,
        seed: int,
        shaping: RewardShaping,
    ) -> None:
        self._algorithm = algorithm
        self._learner = learner
        self._critic = critic
        self._old_logprobs_from = old_logprobs_from
        self._seed = seed
        self._shaping = shaping
        self._writer = RolloutWriter()
        self._advantages: Mapping[str, Tensor] = {}

    def build(
        self,
        *,
        step: int,
        coefficients: Coefficients,
        groups: Sequence[RolloutGroup],
        reference: Sequence[Sequence[TokenValues]],
        values: Sequence[Sequence[TokenValues]],
        old: Sequence[Sequence[TokenValues]],
    ) -> ExperienceBatch:
        """Build the experience of one batch.

        Args:
            reference, values, old: results of every rank of the reference, the critic and the
                learner; empty if the role was not asked.
        """
        batch = build_experience(
            groups,
            reference=_joined(reference),
            values=_joined(values),
            old=_joined(old),
            old_logprobs_from=self._old_logprobs_from,
            algorithm=self._algorithm,
            coefficients=coefficients,
            learner=self._learner,
            critic=self._critic,
            seed=self._seed,
            step=step,
            shaping=self._shaping,
        )
        # Copies of the few that are written: views would hold the whole batch.
        names = [group.prompt.prompt_id for group in detailed_groups(groups)]
        found = batch.advantages
        self._advantages = {name: found[name].clone() for name in names if name in found}
        return batch

    def write_rollouts(
        self,
        path: Path,
        groups: Sequence[RolloutGroup],
        updated: Sequence[Sequence[TokenValues]] = (),
    ) -> None:
        """Begin to write every sample of these groups to `path`; see `RolloutWriter.write`.

        Args:
            updated: of every rank of the learner, log-probabilities of a few groups after the
                update.
        """
        details = TokenDetails(
            advantages=self._advantages,
            updated_logprobs={own.prompt_id: own.values for rank in updated for own in rank},
        )
        self._writer.write(path, groups, details)

    def sample_texts(self, groups: Sequence[RolloutGroup]) -> list[str]:
        """The best and the worst answer of every group, for the terminal."""
        return [
            answer_lines(
                prompt=group.prompt.text,
                answer=group.responses[position],
                reward=float(group.rewards[position]),
                finish=group.finish_reasons[position],
                tokens=int(group.loss_mask.split(group.lengths.tolist())[position].sum()),
            )
            for group in groups
            for position in best_and_worst(group.rewards.tolist())
        ]

    def finish_rollouts(self) -> None:
        """Wait until all rollout files are written; see `RolloutWriter.flush`."""
        self._writer.flush()


def _joined(per_rank: Sequence[Sequence[TokenValues]]) -> list[TokenValues] | None:
    if not per_rank:
        return None
    return [values for rank in per_rank for values in rank]
