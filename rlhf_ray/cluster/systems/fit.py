"""The ranks of a stage that learns from examples, as actors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.fit import OfflineGroup
from rlhf_ray.cluster.runtime.launch import collective_timeout_s, launched, start_ranks
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.run import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class FitSystem:
    """The workers of such a stage, started."""

    supervisor: Supervisor
    ranks: OfflineGroup


@contextmanager
def started_fit(
    config: Config,
    plan: ResourcePlan,
    *,
    actor_class: type,
    settings: dict[str, Any],
    total_optimizer_steps: int,
) -> Iterator[FitSystem]:
    """Start every rank of the plan; end them all on the way out, whatever happened.

    Args:
        config: with paths that every node can read.
        actor_class: of `cluster.roles.fit`: what the ranks are.
        settings: what its worker takes beyond the settings of `LanguageModelRole`.
        total_optimizer_steps: of the whole run.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a rank did not start.
    """
    worker: dict[str, Any] = {
        "training": config.training,
        "model": replace(config.model, head_kernel=config.head_kernel),
        "total_optimizer_steps": total_optimizer_steps,
        "seed": config.seed,
        "timeout_s": collective_timeout_s(config),
        **settings,
    }

    def start(by_role: dict[str, list[Member]], supervisor: Supervisor) -> list[Call]:
        return start_ranks(by_role["learner"], supervisor, timeout_s=config.deadlines.start_s)

    def blueprint(_role: str, _rank: int) -> tuple[type, dict[str, Any]]:
        return actor_class, worker

    with launched(config, plan, blueprint=blueprint, start=start) as (by_role, supervisor):
        yield FitSystem(supervisor=supervisor, ranks=OfflineGroup(by_role["learner"]))
