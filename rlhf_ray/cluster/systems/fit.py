"""The ranks of a stage that learns from examples, started."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.base import Role
from rlhf_ray.cluster.roles.fit import OfflineGroup
from rlhf_ray.cluster.runtime.supervisor import Supervisor
from rlhf_ray.cluster.systems.launch import launched
from rlhf_ray.config.groups.runtime import DeadlineConfig, PlacementConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSystem:
    """The workers of the stage, started."""

    supervisor: Supervisor
    ranks: OfflineGroup


@contextmanager
def started_fit(
    role: Role, plan: ResourcePlan, *, placement: PlacementConfig, deadlines: DeadlineConfig
) -> Iterator[FitSystem]:
    """Start every rank of the plan; end them all on the way out, whatever happened.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a rank did not start.
    """
    with launched([role], plan, placement=placement, deadlines=deadlines) as started:
        by_role, supervisor, _ = started
        members = by_role[role.name]
        ranks = OfflineGroup(members, ranks_per_sample=role.ranks_per_sample)
        yield FitSystem(supervisor=supervisor, ranks=ranks)
