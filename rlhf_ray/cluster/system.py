"""All roles of an RL run as actors: built from the configuration, started together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.cluster import actors
from rlhf_ray.cluster.calls import Call
from rlhf_ray.cluster.groups import Builders, Critics, Generators, Learners, Ranks, Rewards
from rlhf_ray.cluster.launch import Launcher
from rlhf_ray.cluster.resources import ResourcePlan
from rlhf_ray.cluster.runtime import reserved
from rlhf_ray.cluster.supervisor import Member, Supervisor
from rlhf_ray.config.run import Config
from rlhf_ray.training.rank_plan import rank_plan
from rlhf_ray.training.sample_control import SampleControl


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """The roles of a run, started. `critic` and `reference` are None where not needed."""

    supervisor: Supervisor
    generators: Generators
    rewards: Rewards
    learner: Learners
    critic: Critics | None
    reference: Ranks | None
    builder: Builders


@contextmanager
def started_system(config: Config, plan: ResourcePlan) -> Iterator[System]:
    """Start every actor of the plan; end them all on the way out, whatever happened.

    Args:
        config: with paths that every node can read.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """
    deadlines = config.deadlines
    supervisor = Supervisor()
    wait_s = config.placement.wait_s
    with reserved(plan, wait_s=wait_s, timeout_s=deadlines.start_s) as group:
        launcher = Launcher(group, supervisor, timeout_s=deadlines.start_s, stop_s=deadlines.stop_s)
        orderly = False
        try:
            for role in plan.roles:
                actor_class, settings = _blueprint(role.role, config)
                for rank in range(role.num_actors):
                    extra = {"engine_index": rank} if role.role == "generator" else {}
                    launcher.create(role, rank, actor_class, settings | extra)
            members = launcher.members()
            _start(members, supervisor, config)
            launcher.remember_processes()
            yield _facades(members, supervisor)
            orderly = True
        finally:
            launcher.close(orderly=orderly)


def _blueprint(role: str, config: Config) -> tuple[type, dict[str, Any]]:
    """The actor class of a role, and what its worker is built from: its own part only."""
    policy_steps = max(1, config.num_steps - config.algorithm.critic_warmup_steps)
    ranked: dict[str, Any] = {
        "model": replace(config.model, head_kernel=config.head_kernel),
        "seed": config.seed,
        # Collective operations give up a little before the driver does, and say which one.
        "timeout_s": 0.9 * max(config.deadlines.update_s, config.deadlines.start_s),
    }
    sampled = {"temperature": config.generation.temperature}
    blueprints: dict[str, tuple[type, dict[str, Any]]] = {
        "generator": (actors.Generator, _generator_settings(config)),
        "reward": (actors.Reward, {"reward": config.reward}),
        "learner": (
            actors.Learner,
            {
                **ranked,
                **sampled,
                "training": config.training,
                "algorithm": config.algorithm,
                "max_response_tokens": config.generation.max_response_tokens,
                "total_optimizer_steps": policy_steps * config.optimizer_steps_per_batch,
            },
        ),
        "critic": (
            actors.Critic,
            {
                **ranked,
                "critic": config.critic,
                "algorithm": config.algorithm,
                "total_optimizer_steps": config.total_optimizer_steps,
            },
        ),
        "reference": (
            actors.Reference,
            {
                **ranked,
                **sampled,
                "reference": config.reference,
                "of_all_kept": config.algorithm.kl_estimator == "full",
            },
        ),
        "builder": (
            actors.Builder,
            {
                "algorithm": config.algorithm,
                "learner": rank_plan(config.training),
                "critic": rank_plan(config.critic) if config.needs_critic else None,
                "old_is_current": config.old_is_current,
                "seed": config.seed,
                "control": _sample_control(config),
            },
        ),
    }
    return blueprints[role]


def _generator_settings(config: Config) -> dict[str, Any]:
    return {
        "generation": config.generation,
        "model": config.model,
        "max_sequence_tokens": config.max_sequence_tokens,
        "greedy_from": config.samples_per_prompt,
        "request_timeout_s": config.deadlines.request_s,
        "with_text_ends": config.algorithm.rewards_steps,
    }


def _sample_control(config: Config) -> SampleControl:
    sampling = config.sampling
    return SampleControl(
        max_response_tokens=config.generation.max_response_tokens,
        overlong_buffer_tokens=sampling.overlong_buffer_tokens,
        overlong_penalty=sampling.overlong_penalty,
        overlong_filter=sampling.overlong_filter,
        task_weights=sampling.task_weights,
    )


def _start(members: list[Member], supervisor: Supervisor, config: Config) -> None:
    """All roles load their models at the same time."""
    by_role = _by_role(members)
    shared_gpus = _shared_gpus(by_role, config)
    calls = []
    for role, ranks in by_role.items():
        if role in ("learner", "critic", "reference"):
            first = Call(
                member=ranks[0].name, signal=ranks[0].handle.reserve_address.remote(), payload=None
            )
            timeout_s = config.deadlines.start_s
            (address,) = supervisor.results([first], phase="start", timeout_s=timeout_s)
            refs = [m.handle.start.remote(m.name.rank, len(ranks), address) for m in ranks]
        elif role == "generator":
            refs = [m.handle.start.remote(shared_gpus[m.name.rank]) for m in ranks]
        else:
            refs = [m.handle.start.remote() for m in ranks]
        calls += [
            Call(member=m.name, signal=ref, payload=None)
            for m, ref in zip(ranks, refs, strict=True)
        ]
    supervisor.results(calls, phase="start", timeout_s=config.deadlines.start_s)


def _shared_gpus(by_role: dict[str, list[Member]], config: Config) -> list[tuple[str, ...]]:
    """Per engine, the GPUs of the learner ranks in its bundle; none unless colocated."""
    num_engines = len(by_role["generator"])
    if config.placement.strategy != "colocated":
        return [()] * num_engines
    per_engine = len(by_role["learner"]) // num_engines
    learner_gpus = [member.info.gpu_ids for member in by_role["learner"]]
    return [
        tuple(gpu for ids in learner_gpus[i * per_engine : (i + 1) * per_engine] for gpu in ids)
        for i in range(num_engines)
    ]


def _facades(members: list[Member], supervisor: Supervisor) -> System:
    by_role = _by_role(members)
    critic, reference = by_role.get("critic", []), by_role.get("reference", [])
    return System(
        supervisor=supervisor,
        generators=Generators(by_role["generator"]),
        rewards=Rewards(by_role["reward"]),
        learner=Learners(by_role["learner"]),
        critic=Critics(critic) if critic else None,
        reference=Ranks(reference) if reference else None,
        builder=Builders(
            by_role["builder"][0], num_learners=len(by_role["learner"]), num_critics=len(critic)
        ),
    )


def _by_role(members: list[Member]) -> dict[str, list[Member]]:
    by_role: dict[str, list[Member]] = {}
    for member in members:
        by_role.setdefault(member.name.role, []).append(member)
    return by_role
