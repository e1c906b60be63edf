"""The roles of a run: the one place where a configuration is divided among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlhf_ray.cluster.resource_plan import ResourcePlan, plan_resources
from rlhf_ray.cluster.roles.base import Role, rank_resources
from rlhf_ray.cluster.roles.builder import BuilderSettings, builder_role
from rlhf_ray.cluster.roles.critic import CriticSettings, critic_role
from rlhf_ray.cluster.roles.generator import EngineSettings, generator_role
from rlhf_ray.cluster.roles.learner import LearnerSettings, learner_role
from rlhf_ray.cluster.roles.reference import ReferenceSettings, reference_role
from rlhf_ray.cluster.roles.rewards import Scoring, ScoringContext, reward_role
from rlhf_ray.cluster.roles.scoring_kinds import scorings_of
from rlhf_ray.cluster.runtime.worker_environment import worker_environment
from rlhf_ray.config.run import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRoles:
    """The roles of a run, in the order in which they are created, and its kinds of rewards."""

    roles: tuple[Role, ...]
    scorings: tuple[Scoring, ...]

    def named(self, name: str) -> Role:
        """The role of this name, which is part of the run."""
        return next(role for role in self.roles if role.name == name)

    def ranks_per_sample(self, name: str) -> int:
        """Ranks of a role that compute every sample together; 1 for a role that is not there."""
        return next((role.ranks_per_sample for role in self.roles if role.name == name), 1)


def resource_plan(config: Config) -> ResourcePlan:
    """The actors and bundles of any stage that starts workers."""
    if config.is_fit:
        resources = [rank_resources("learner", config.training)]
    else:
        resources = [role.resources for role in run_roles(config).roles]
    plan = plan_resources(resources, spread=config.placement.spread)
    return replace(plan, environment=worker_environment(config.placement))


def run_roles(config: Config) -> RunRoles:
    """The roles of reinforcement learning or of an evaluation, as its configuration asks for."""
    scorings = scorings_of(scoring_context(config))
    engines = EngineSettings(
        generation=config.generation,
        model=config.model,
        max_sequence_tokens=config.max_engine_tokens,
        greedy_from=config.greedy_from,
        request_timeout_s=config.deadlines.request_s,
        with_text_ends=config.algorithm.rewards_steps,
        lora=config.training.lora if config.publishes_adapter else None,
        keeps_cache=config.publish.keep_cache,
        answers_by_files=config.is_evaluation,
    )
    builder = BuilderSettings(
        algorithm=config.algorithm,
        rollout_selection=config.rollout_selection,
        learner=config.training,
        critic=config.critic if config.needs_critic else None,
        old_logprobs_from=config.old_logprobs_from,
        max_response_tokens=config.generation.max_response_tokens,
        seed=config.seed,
    )
    is_hybrid = config.placement.strategy == "colocated" and not config.is_evaluation
    roles = (
        generator_role(engines, shares_gpus_of="learner" if is_hybrid else None),
        *_rank_roles(config, engines_of="generator" if is_hybrid else None),
        *(role for scoring in scorings for role in scoring.roles),
        reward_role(config.reward),
        builder_role(builder),
    )
    return RunRoles(roles=roles, scorings=scorings)


def scoring_context(config: Config) -> ScoringContext:
    """The part of a configuration that kinds of rewards read."""
    return ScoringContext(
        reward=config.reward,
        model=config.model_of_ranks,
        generation=config.generation,
        seed=config.seed,
        collective_timeout_s=config.collective_timeout_s,
    )


def _rank_roles(config: Config, *, engines_of: str | None) -> list[Role]:
    """Learner, critic and reference; `engines_of`: the role whose bundles the learner shares."""
    algorithm, model = config.algorithm, config.model_of_ranks
    timeout_s = config.collective_timeout_s
    roles: list[Role] = []
    if not config.is_evaluation:
        policy_steps = max(1, config.num_steps - algorithm.critic_warmup_steps)
        learner = LearnerSettings(
            training=config.training,
            algorithm=algorithm,
            model=model,
            max_response_tokens=config.generation.max_response_tokens,
            temperature=config.generation.temperature,
            total_optimizer_steps=policy_steps * config.optimizer_steps_per_batch,
            seed=config.seed,
            timeout_s=timeout_s,
        )
        roles.append(learner_role(learner, shares_bundles_of=engines_of))
    if config.needs_critic:
        critic = CriticSettings(
            critic=config.critic,
            algorithm=algorithm,
            model=model,
            total_optimizer_steps=config.total_optimizer_steps,
            seed=config.seed,
            timeout_s=timeout_s,
        )
        roles.append(critic_role(critic))
    if config.starts_reference:
        reference = ReferenceSettings(
            reference=config.reference,
            model=model,
            temperature=config.generation.temperature,
            seed=config.seed,
            timeout_s=timeout_s,
            decay=algorithm.reference_decay,
            over_support=algorithm.kl_estimator == "full",
        )
        roles.append(reference_role(reference))
    return roles
