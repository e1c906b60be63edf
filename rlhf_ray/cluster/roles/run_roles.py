"""The roles of a run: the one place where a configuration is divided among them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlhf_ray.cluster.roles.base import Resources, Role, rank_resources
from rlhf_ray.cluster.roles.builder import BuilderSettings, builder_role
from rlhf_ray.cluster.roles.critic import CriticSettings, critic_role
from rlhf_ray.cluster.roles.generator import EngineSettings, generator_role
from rlhf_ray.cluster.roles.learner import LearnerSettings, learner_role
from rlhf_ray.cluster.roles.reference import ReferenceSettings, reference_role
from rlhf_ray.cluster.roles.rewards import Scoring, ScoringContext, reward_role
from rlhf_ray.cluster.roles.scoring_kinds import scorings_of
from rlhf_ray.config.groups.model import ModelConfig
from rlhf_ray.config.groups.runtime import DeadlineConfig
from rlhf_ray.config.run import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRoles:
    """The roles of a run, in the order in which they are created, and its kinds of rewards."""

    roles: tuple[Role, ...]
    scorings: tuple[Scoring, ...]

    def named(self, name: str) -> Role:
        """The role of this name, which is part of the run."""
        return next(role for role in self.roles if role.name == name)


def run_roles(config: Config) -> RunRoles:
    """The roles of reinforcement learning or of an evaluation, as its configuration asks for."""
    scorings = scorings_of(scoring_context(config))
    roles = [_generator(config)]
    if not config.is_evaluation:
        roles.append(_learner(config))
    if config.needs_critic:
        roles.append(_critic(config))
    if config.starts_reference:
        roles.append(_reference(config))
    roles += [role for scoring in scorings for role in scoring.roles]
    roles += [reward_role(config.reward), _builder(config)]
    return RunRoles(roles=tuple(roles), scorings=scorings)


def run_resources(config: Config) -> list[Resources]:
    """What the roles of a run ask of the cluster, whatever its stage."""
    if config.is_fit:
        return [rank_resources("learner", config.training)]
    return [role.resources for role in run_roles(config).roles]


def scoring_context(config: Config) -> ScoringContext:
    """The part of a configuration that kinds of rewards read."""
    return ScoringContext(
        reward=config.reward,
        model=model_of_ranks(config),
        generation=config.generation,
        seed=config.seed,
        collective_timeout_s=collective_timeout_s(
            config.deadlines, evaluates=config.is_fit or config.is_evaluation
        ),
    )


def model_of_ranks(config: Config) -> ModelConfig:
    """The model settings of DeepSpeed roles, with the kernel of the head decided."""
    return replace(config.model, head_kernel=config.head_kernel)


def collective_timeout_s(deadlines: DeadlineConfig, *, evaluates: bool) -> float:
    """How long a collective operation waits for the other ranks.

    It is a little less than the driver waits, so that the ranks say which operation it was.

    Args:
        evaluates: the ranks evaluate held-out rows, too.
    """
    longest = [deadlines.update_s, deadlines.start_s]
    return 0.9 * max([*longest, deadlines.evaluate_s] if evaluates else longest)


def _timeout_s(config: Config) -> float:
    return collective_timeout_s(config.deadlines, evaluates=config.is_evaluation)


def _shares(config: Config) -> bool:
    return config.placement.strategy == "colocated" and not config.is_evaluation


def _generator(config: Config) -> Role:
    settings = EngineSettings(
        generation=config.generation,
        model=config.model,
        max_sequence_tokens=_longest_of_engines(config),
        greedy_from=config.greedy_from,
        request_timeout_s=config.deadlines.request_s,
        with_text_ends=config.algorithm.rewards_steps,
        lora=config.training.lora if config.publishes_adapter else None,
    )
    return generator_role(settings, shares_gpus_of="learner" if _shares(config) else None)


def _longest_of_engines(config: Config) -> int:
    """Tokens of the longest sequence of the run's engines, which may judge or score texts, too."""
    judge = config.reward.judge
    longest = config.max_sequence_tokens
    if config.is_evaluation and config.examples.eval_path is not None:
        # A text that is scored must be shorter than the longest sequence of the engine.
        return max(longest, config.examples.max_tokens + 1)
    return max(longest, judge.max_sequence_tokens) if judge.is_policy else longest


def _learner(config: Config) -> Role:
    policy_steps = max(1, config.num_steps - config.algorithm.critic_warmup_steps)
    settings = LearnerSettings(
        training=config.training,
        algorithm=config.algorithm,
        model=model_of_ranks(config),
        max_response_tokens=config.generation.max_response_tokens,
        temperature=config.generation.temperature,
        total_optimizer_steps=policy_steps * config.optimizer_steps_per_batch,
        seed=config.seed,
        timeout_s=_timeout_s(config),
    )
    return learner_role(settings, shares_bundles_of="generator" if _shares(config) else None)


def _critic(config: Config) -> Role:
    settings = CriticSettings(
        critic=config.critic,
        algorithm=config.algorithm,
        model=model_of_ranks(config),
        total_optimizer_steps=config.total_optimizer_steps,
        seed=config.seed,
        timeout_s=_timeout_s(config),
    )
    return critic_role(settings)


def _reference(config: Config) -> Role:
    settings = ReferenceSettings(
        reference=config.reference,
        model=model_of_ranks(config),
        temperature=config.generation.temperature,
        seed=config.seed,
        timeout_s=_timeout_s(config),
        decay=config.algorithm.reference_decay,
        of_all_kept=config.algorithm.kl_estimator == "full",
    )
    return reference_role(settings)


def _builder(config: Config) -> Role:
    settings = BuilderSettings(
        algorithm=config.algorithm,
        sampling=config.sampling,
        learner=config.training,
        critic=config.critic if config.needs_critic else None,
        old_is_current=config.old_is_current,
        max_response_tokens=config.generation.max_response_tokens,
        seed=config.seed,
    )
    return builder_role(settings)
