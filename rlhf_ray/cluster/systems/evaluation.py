"""The workers of `stage=evaluate`: scorers for all models, engines for one model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from rlhf_ray.calls import Call
from rlhf_ray.cluster.engines.group import GeneratorGroup
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.base import Role
from rlhf_ray.cluster.roles.builder import BuilderGroup
from rlhf_ray.cluster.roles.reference import ReferenceGroup
from rlhf_ray.cluster.roles.rewards import RewardGroup
from rlhf_ray.cluster.roles.run_roles import RunRoles
from rlhf_ray.cluster.runtime.supervisor import Supervisor
from rlhf_ray.cluster.systems.launch import launched_in, reserved_for
from rlhf_ray.config.groups.runtime import DeadlineConfig, PlacementConfig

_ENGINES = "generator"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSystem:
    """The roles that stay for the whole evaluation. `reference` is None where not needed."""

    supervisor: Supervisor
    rewards: RewardGroup
    reference: ReferenceGroup | None
    builder: BuilderGroup
    group: PlacementGroup
    plan: ResourcePlan
    deadlines: DeadlineConfig


@contextmanager
def started_scoring(
    run: RunRoles, plan: ResourcePlan, *, placement: PlacementConfig, deadlines: DeadlineConfig
) -> Iterator[ScoringSystem]:
    """Reserve the whole plan and start all roles but the engines; end them on the way out.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    roles = [role for role in run.roles if role.name != _ENGINES]
    with (
        reserved_for(plan, placement=placement, deadlines=deadlines) as group,
        launched_in(group, roles, plan, deadlines=deadlines) as (by_role, supervisor, _),
    ):
        ranks = by_role.get("reference", [])
        size = run.ranks_per_sample("reference")
        yield ScoringSystem(
            supervisor=supervisor,
            rewards=RewardGroup(by_role["reward"], [s.pool(by_role) for s in run.scorings]),
            reference=ReferenceGroup(ranks, ranks_per_sample=size) if ranks else None,
            builder=BuilderGroup(by_role["builder"][0], num_learners=0, num_critics=0),
            group=group,
            plan=plan,
            deadlines=deadlines,
        )


@contextmanager
def started_engines(
    engines: Role, scoring: ScoringSystem
) -> Iterator[tuple[GeneratorGroup, Supervisor]]:
    """The engines of one model, and a supervisor of them and of all that scores.

    Raises:
        RunFailed: an engine did not start.
    """
    with launched_in(scoring.group, [engines], scoring.plan, deadlines=scoring.deadlines) as (
        by_role,
        supervisor,
        _,
    ):
        for member in scoring.supervisor.members:
            supervisor.add(member)
        yield GeneratorGroup(by_role[engines.name]), supervisor


def run_harness(harness: Role, scoring: ScoringSystem) -> dict[str, Any]:
    """Run standard tasks on one model, by the harness's own engine in the place of the run's.

    Returns:
        see `harness_tasks.task_results`.

    Raises:
        RunFailed: it did not start, failed, or was not done in time.
    """
    engines = scoring.plan.role(_ENGINES)
    place = replace(
        engines, role=harness.name, num_actors=1, bundle_indices=engines.bundle_indices[:1]
    )
    plan = replace(scoring.plan, roles=(place,))
    deadlines = scoring.deadlines
    with launched_in(scoring.group, [harness], plan, deadlines=deadlines) as started:
        by_role, supervisor, _ = started
        (member,) = by_role[harness.name]
        call = Call(member=member.name, signal=member.handle.run.remote(), payload=None)
        return supervisor.results([call], phase="evaluate", timeout_s=deadlines.evaluate_s)[0]
