"""The workers of `stage=evaluate`: what scores answers, and the engines of one model at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ray.util.placement_group import PlacementGroup

from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.builder import BuilderGroup
from rlhf_ray.cluster.roles.generator import GeneratorGroup
from rlhf_ray.cluster.roles.harness import HarnessActor
from rlhf_ray.cluster.roles.reference import ReferenceGroup
from rlhf_ray.cluster.roles.rewards import RewardGroup
from rlhf_ray.cluster.runtime.launch import launched_in, reserved_for
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.cluster.systems.rl import blueprint_of, scorer_pools, start_of
from rlhf_ray.config.run import Config
from rlhf_ray.evaluation.harness_tasks import HarnessTasks

_ENGINES = "generator"
_HARNESS = "lm_eval"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSystem:
    """What stays for the whole of an evaluation. `reference` is None where not needed."""

    supervisor: Supervisor
    rewards: RewardGroup
    reference: ReferenceGroup | None
    builder: BuilderGroup
    group: PlacementGroup


@contextmanager
def started_scoring(config: Config, plan: ResourcePlan) -> Iterator[ScoringSystem]:
    """Reserve the whole plan and start all of it but the engines; end it on the way out.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    roles = [role for role in plan.roles if role.role != _ENGINES]
    with (
        reserved_for(config, plan) as group,
        launched_in(
            group, config, roles, blueprint=blueprint_of(config), start=start_of(config)
        ) as (by_role, supervisor),
    ):
        reference = by_role.get("reference", [])
        yield ScoringSystem(
            supervisor=supervisor,
            rewards=RewardGroup(by_role["reward"], scorer_pools(by_role, config)),
            reference=ReferenceGroup(reference) if reference else None,
            builder=BuilderGroup(by_role["builder"][0], num_learners=0, num_critics=0),
            group=group,
        )


@contextmanager
def started_engines(
    config: Config, plan: ResourcePlan, scoring: ScoringSystem
) -> Iterator[tuple[GeneratorGroup, Supervisor]]:
    """The engines of `config.model`, and who watches over them and over what scores.

    Raises:
        RunFailed: an engine did not start.
    """
    roles = [role for role in plan.roles if role.role == _ENGINES]
    with launched_in(
        scoring.group, config, roles, blueprint=blueprint_of(config), start=start_of(config)
    ) as (by_role, supervisor):
        for member in scoring.supervisor.members:
            supervisor.add(member)
        yield GeneratorGroup(by_role[_ENGINES]), supervisor


def run_harness(
    config: Config, plan: ResourcePlan, scoring: ScoringSystem, tasks: HarnessTasks
) -> dict[str, Any]:
    """Standard tasks on `config.model`, by an engine of the harness's own in place of ours.

    Returns:
        see `harness_tasks.task_results`.

    Raises:
        RunFailed: it did not start, failed, or was not done in time.
    """
    engines = next(role for role in plan.roles if role.role == _ENGINES)
    role = replace(engines, role=_HARNESS, num_actors=1, bundle_indices=engines.bundle_indices[:1])
    settings = {
        "generation": config.generation,
        "model": config.model,
        "tasks": tasks,
        "seed": config.seed,
    }

    def blueprint(_role: str, _rank: int) -> tuple[type, dict[str, Any]]:
        return HarnessActor, settings

    def start(by_role: dict[str, list[Member]], _supervisor: Supervisor) -> list[Call]:
        (member,) = by_role[_HARNESS]
        return [Call(member=member.name, signal=member.handle.start.remote(), payload=None)]

    with launched_in(scoring.group, config, [role], blueprint=blueprint, start=start) as started:
        by_role, supervisor = started
        (member,) = by_role[_HARNESS]
        call = Call(member=member.name, signal=member.handle.run.remote(), payload=None)
        timeout_s = config.deadlines.evaluate_s
        return supervisor.results([call], phase="evaluate", timeout_s=timeout_s)[0]
