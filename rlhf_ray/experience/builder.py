"""From what the roles computed for a batch to the experience of every rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig
from rlhf_ray.experience.build import ExperienceBatch, build_experience
from rlhf_ray.experience.reward_shaping import RewardShaping
from rlhf_ray.observe.rollout_log import write_rollouts
from rlhf_ray.records import Coefficients, RolloutGroup, TokenValues


class ExperienceBuilder:
    """Builds experience and writes rollout files, away from the driver.

    Args:
        learner, critic: how the ranks of each share the work; None without a critic.
        old_is_current: see `Config.old_is_current`.
        seed: of the run.
        control: what is done to samples before and after their advantages.
    """

    def __init__(
        self,
        *,
        algorithm: AlgorithmConfig,
        learner: RankPlan,
        critic: RankPlan | None,
        old_is_current: bool,
        seed: int,
        control: RewardShaping,
    ) -> None:
        self._algorithm = algorithm
        self._learner = learner
        self._critic = critic
        self._old_is_current = old_is_current
        self._seed = seed
        self._control = control

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
        """Experience of one batch; per role, what each of its ranks computed (none: not asked)."""
        return build_experience(
            groups,
            reference=_joined(reference),
            values=_joined(values),
            old=_joined(old),
            old_is_current=self._old_is_current,
            algorithm=self._algorithm,
            coefficients=coefficients,
            learner=self._learner,
            critic=self._critic,
            seed=self._seed,
            step=step,
            control=self._control,
        )

    def write_rollouts(self, path: Path, groups: Sequence[RolloutGroup]) -> None:
        """Write every sample of these groups to `path`."""
        write_rollouts(path, groups)


def _joined(per_rank: Sequence[Sequence[TokenValues]]) -> list[TokenValues] | None:
    if not per_rank:
        return None
    return [values for rank in per_rank for values in rank]
