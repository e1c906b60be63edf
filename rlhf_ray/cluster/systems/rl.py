"""All roles of a reinforcement-learning run as actors, started together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.engines.replacement import Replacements
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.base import RankGroup
from rlhf_ray.cluster.roles.builder import BuilderGroup
from rlhf_ray.cluster.roles.critic import CriticGroup
from rlhf_ray.cluster.roles.learner import LearnerGroup
from rlhf_ray.cluster.roles.reference import ReferenceGroup
from rlhf_ray.cluster.roles.rewards import RewardGroup
from rlhf_ray.cluster.roles.run_roles import RunRoles
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.cluster.systems.launch import launched
from rlhf_ray.cluster.systems.restarts import TrainedRestarts
from rlhf_ray.config.groups.runtime import DeadlineConfig, PlacementConfig
from rlhf_ray.observe.startup import StartupClock


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """The roles of a run, started. `critic` and `reference` are None where not needed.

    Attributes:
        replacements: starts engines in the place of lost ones.
        restarts: ends and starts the ranks of learner and critic.
    """

    supervisor: Supervisor
    generators: GeneratorGroup
    replacements: Replacements
    restarts: TrainedRestarts
    rewards: RewardGroup
    learner: LearnerGroup
    critic: CriticGroup | None
    reference: ReferenceGroup | None
    builder: BuilderGroup


@contextmanager
def started_system(
    run: RunRoles,
    plan: ResourcePlan,
    *,
    placement: PlacementConfig,
    deadlines: DeadlineConfig,
    startup: StartupClock,
) -> Iterator[System]:
    """Start every actor of the plan; end them all on the way out, whatever happened.

    Args:
        startup: times the start.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    startup.done("ray")
    with launched(
        run.roles, plan, placement=placement, deadlines=deadlines, startup=startup
    ) as started:
        by_role, supervisor, launcher = started
        generators = GeneratorGroup(by_role["generator"])
        learner, critic = _trained(run, by_role)
        trained: dict[str, RankGroup] = {
            "learner": learner,
            **({"critic": critic} if critic else {}),
        }
        reference = _reference(run, by_role)
        pools = [scoring.pool(by_role) for scoring in run.scorings]
        yield System(
            supervisor=supervisor,
            generators=generators,
            replacements=Replacements(
                run.named("generator"),
                plan,
                launcher,
                supervisor,
                on_started=generators.join,
                timeout_s=deadlines.start_s,
            ),
            restarts=TrainedRestarts(
                [run.named(name) for name in trained],
                trained,
                plan,
                launcher,
                supervisor,
                timeout_s=deadlines.start_s,
            ),
            rewards=RewardGroup(by_role["reward"], pools),
            learner=learner,
            critic=critic,
            reference=reference,
            builder=BuilderGroup(
                by_role["builder"][0],
                num_learners=learner.num_shares,
                num_critics=critic.num_shares if critic else 0,
            ),
        )


def _trained(
    run: RunRoles, by_role: Mapping[str, Sequence[Member]]
) -> tuple[LearnerGroup, CriticGroup | None]:
    """The roles that train."""
    learner = LearnerGroup(by_role["learner"], ranks_per_sample=run.ranks_per_sample("learner"))
    critics = by_role.get("critic")
    if not critics:
        return learner, None
    return learner, CriticGroup(critics, ranks_per_sample=run.ranks_per_sample("critic"))


def _reference(run: RunRoles, by_role: Mapping[str, Sequence[Member]]) -> ReferenceGroup | None:
    references = by_role.get("reference")
    if not references:
        return None
    return ReferenceGroup(references, ranks_per_sample=run.ranks_per_sample("reference"))
