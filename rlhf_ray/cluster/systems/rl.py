"""All roles of an RL run as actors: built from the configuration, started together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.batching.rank_plan import rank_plan
from rlhf_ray.calls import Call
from rlhf_ray.cluster.resource_plan import ResourcePlan
from rlhf_ray.cluster.roles.builder import BuilderActor, BuilderGroup
from rlhf_ray.cluster.roles.critic import CriticActor, CriticGroup
from rlhf_ray.cluster.roles.generator import GeneratorActor, GeneratorGroup
from rlhf_ray.cluster.roles.judge import (
    judge_engine_settings,
    judge_settings,
    longest_of_engines,
)
from rlhf_ray.cluster.roles.learner import LearnerActor, LearnerGroup
from rlhf_ray.cluster.roles.reference import ReferenceActor, ReferenceGroup
from rlhf_ray.cluster.roles.rewards import (
    HttpRewardActor,
    JudgeActor,
    OneOfRanks,
    Replicas,
    RewardActor,
    RewardGroup,
    RewardModelActor,
    ScorerPool,
)
from rlhf_ray.cluster.runtime.launch import (
    Blueprint,
    Start,
    collective_timeout_s,
    launched,
    start_ranks,
)
from rlhf_ray.cluster.runtime.supervisor import Member, Supervisor
from rlhf_ray.config.bearer_token import service_token
from rlhf_ray.config.run import Config
from rlhf_ray.experience.reward_shaping import RewardShaping
from rlhf_ray.publish.transports import engine_backend


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """The roles of a run, started. `critic` and `reference` are None where not needed."""

    supervisor: Supervisor
    generators: GeneratorGroup
    rewards: RewardGroup
    learner: LearnerGroup
    critic: CriticGroup | None
    reference: ReferenceGroup | None
    builder: BuilderGroup


@contextmanager
def started_system(config: Config, plan: ResourcePlan) -> Iterator[System]:
    """Start every actor of the plan; end them all on the way out, whatever happened.

    Args:
        config: with paths that every node can read.

    Raises:
        RequestError: the cluster is too small.
        RunFailed: a role did not start.
    """

    with launched(config, plan, blueprint=blueprint_of(config), start=start_of(config)) as (
        by_role,
        supervisor,
    ):
        yield _facades(by_role, supervisor, config)


def blueprint_of(config: Config) -> Blueprint:
    """What every actor of these roles is built from."""

    def blueprint(role: str, rank: int) -> tuple[type, dict[str, Any]]:
        actor_class, settings = _blueprint(role, config)
        first = {"generator": 0, "judge": config.generation.num_engines}
        extra = {"engine_index": first[role] + rank} if role in first else {}
        return actor_class, settings | extra

    return blueprint


def start_of(config: Config) -> Start:
    """How their actors are started: all of them load their models at the same time."""
    return lambda by_role, supervisor: _start(by_role, supervisor, config)


def _blueprint(role: str, config: Config) -> tuple[type, dict[str, Any]]:
    """The actor class of a role, and what its worker is built from: its own part only."""
    policy_steps = max(1, config.num_steps - config.algorithm.critic_warmup_steps)
    ranked: dict[str, Any] = {
        "model": replace(config.model, head_kernel=config.head_kernel),
        "seed": config.seed,
        "timeout_s": collective_timeout_s(config),
    }
    sampled = {"temperature": config.generation.temperature}
    blueprints: dict[str, tuple[type, dict[str, Any]]] = {
        "generator": (GeneratorActor, _generator_settings(config)),
        "reward": (RewardActor, {"reward": config.reward}),
        "reward_model": (RewardModelActor, {**ranked, "reward_model": config.reward.model}),
        "http_reward": (HttpRewardActor, _http_settings(config)),
        "judge": (GeneratorActor, judge_engine_settings(config)),
        "judge_scorer": (JudgeActor, judge_settings(config)),
        "learner": (
            LearnerActor,
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
            CriticActor,
            {
                **ranked,
                "critic": config.critic,
                "algorithm": config.algorithm,
                "total_optimizer_steps": config.total_optimizer_steps,
            },
        ),
        "reference": (ReferenceActor, {**ranked, **sampled, **_reference_settings(config)}),
        "builder": (
            BuilderActor,
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
        "max_sequence_tokens": longest_of_engines(config),
        "greedy_from": config.greedy_from,
        "request_timeout_s": config.deadlines.request_s,
        "with_text_ends": config.algorithm.rewards_steps,
        "lora": config.training.lora if config.publishes_adapter else None,
        "weight_backend": engine_backend(config.publish.transport),
    }


def _http_settings(config: Config) -> dict[str, Any]:
    reward = config.reward
    return {"url": reward.url, "http": reward.http, "token": service_token(reward)}


def _reference_settings(config: Config) -> dict[str, Any]:
    algorithm = config.algorithm
    return {
        "reference": config.reference,
        "decay": algorithm.reference_decay,
        "of_all_kept": algorithm.kl_estimator == "full",
    }


def _sample_control(config: Config) -> RewardShaping:
    sampling = config.sampling
    return RewardShaping(
        max_response_tokens=config.generation.max_response_tokens,
        overlong_buffer_tokens=sampling.overlong_buffer_tokens,
        overlong_penalty=sampling.overlong_penalty,
        overlong_filter=sampling.overlong_filter,
        task_weights=sampling.task_weights,
    )


def _start(by_role: dict[str, list[Member]], supervisor: Supervisor, config: Config) -> list[Call]:
    """All roles load their models at the same time."""
    shared_gpus = _shared_gpus(by_role, config)
    calls = []
    for role, members in by_role.items():
        if role in ("learner", "critic", "reference"):
            calls += start_ranks(members, supervisor, timeout_s=config.deadlines.start_s)
            continue
        if role == "reward_model":
            for ranks in _models_of(members, config):
                calls += start_ranks(ranks, supervisor, timeout_s=config.deadlines.start_s)
            continue
        if role == "judge":
            refs = [m.handle.start.remote(()) for m in members]
        elif role == "judge_scorer":
            asked = "judge" if "judge" in by_role else "generator"
            engines = [m.handle for m in by_role[asked]]
            refs = [m.handle.start.remote(engines) for m in members]
        elif role == "generator":
            refs = [m.handle.start.remote(shared_gpus[m.name.rank]) for m in members]
        else:
            refs = [m.handle.start.remote() for m in members]
        calls += [
            Call(member=m.name, signal=ref, payload=None)
            for m, ref in zip(members, refs, strict=True)
        ]
    return calls


def _shared_gpus(by_role: dict[str, list[Member]], config: Config) -> list[tuple[str, ...]]:
    """Per engine, the GPUs of the learner ranks in its bundle; none unless colocated."""
    num_engines = len(by_role.get("generator", ()))
    if config.placement.strategy != "colocated" or config.is_evaluation:
        return [()] * num_engines
    per_engine = len(by_role["learner"]) // num_engines
    learner_gpus = [member.info.gpu_ids for member in by_role["learner"]]
    return [
        tuple(gpu for ids in learner_gpus[i * per_engine : (i + 1) * per_engine] for gpu in ids)
        for i in range(num_engines)
    ]


def _models_of(members: list[Member], config: Config) -> list[list[Member]]:
    """The ranks of each reward model: all hold one together, or each one of its own."""
    is_sharded = config.reward.model.zero_stage == 3
    return [members] if is_sharded else [[member] for member in members]


def scorer_pools(by_role: dict[str, list[Member]], config: Config) -> list[ScorerPool]:
    """What scores a group after the functions, in this order."""
    scorers: list[ScorerPool] = []
    if models := by_role.get("reward_model", []):
        is_sharded = config.reward.model.zero_stage == 3
        scorers.append(OneOfRanks(models) if is_sharded else Replicas(models))
    if askers := by_role.get("http_reward", []):
        scorers.append(Replicas(askers))
    if judges := by_role.get("judge_scorer", []):
        scorers.append(Replicas(judges))
    return scorers


def _facades(by_role: dict[str, list[Member]], supervisor: Supervisor, config: Config) -> System:
    critic, reference = by_role.get("critic", []), by_role.get("reference", [])
    return System(
        supervisor=supervisor,
        generators=GeneratorGroup(by_role["generator"]),
        rewards=RewardGroup(by_role["reward"], scorer_pools(by_role, config)),
        learner=LearnerGroup(by_role["learner"]),
        critic=CriticGroup(critic) if critic else None,
        reference=ReferenceGroup(reference) if reference else None,
        builder=BuilderGroup(
            by_role["builder"][0], num_learners=len(by_role["learner"]), num_critics=len(critic)
        ),
    )
