"""A bandit whose optimum is known, solved by the real driver with engine and learner in-process.

Three prompts. The policy samples up to three tokens; after the first, an environment puts a
token of its own, on which nobody may train. The first and the second sampled token earn half a
point each where they are the right ones for the prompt. The policy is a table of logits by prompt
and position, so that its expected reward is a short sum and no estimate.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import OldLogprobsFrom
from rlhf_ray.config.run import Config
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.loop import Loop, LoopState, train
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import Batch, PipelineSettings, RolloutPipeline
from rlhf_ray.driver.updates.controllers import start_controllers
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.driver.updates.reference_update import (
    NoReferenceUpdate,
    PeriodicReferenceUpdater,
    ReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.driver.updates.scorers import NoScores, Scorers
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.experience.builder import ExperienceBuilder
from rlhf_ray.experience.reward_shaping import NO_SHAPING
from rlhf_ray.publish.gate import Probe
from rlhf_ray.publish.publisher import Publisher, PublishSettings
from rlhf_ray.testing.bandit_reference import BanditReference
from rlhf_ray.testing.bandit_rewards import BanditRewards
from rlhf_ray.testing.bandit_workers import (
    END,
    NUM_POSITIONS,
    RIGHT,
    BanditBuilder,
    BanditCritic,
    BanditEngines,
    BanditPolicy,
    BanditPrompts,
)
from rlhf_ray.testing.fakes import InProcessWatch

_TIMEOUT_S = 60.0
_PLAN = RankPlan(num_ranks=1, max_tokens_per_micro_batch=64)
_PROBE = Probe(sequences=((0, 1, 2, 3),))


def solve(config: Config, *, seed: int) -> float:
    """Train as configured; the exact expected reward over the offset, of at most 1."""
    algorithm = config.algorithm
    policy, watch = BanditPolicy(algorithm), InProcessWatch()
    critic = BanditCritic(algorithm) if config.needs_critic else None
    reference = BanditReference(decay=algorithm.reference_decay)
    scores_old = config.old_logprobs_from is OldLogprobsFrom.LEARNER_BEFORE_UPDATE
    engines = BanditEngines(policy.table.weights, greedy_from=config.samples_per_prompt)
    loop = Loop(
        pipeline=_pipeline(config, engines, watch, seed),
        scorers=Scorers(
            reference=reference if config.needs_reference else NoScores(),
            critic=critic or NoScores(),
            old=policy if scores_old else NoScores(),
            untrained=policy,
            num_untrained_steps=algorithm.critic_warmup_steps,
            watch=watch,
            timeout_s=_TIMEOUT_S,
        ),
        trainer=_trainer(config, policy, critic, watch, seed),
        publisher=Publisher(
            source=policy,
            receivers=engines,
            watch=watch,
            probe=_PROBE,
            settings=PublishSettings(
                bucket_bytes=1, probe_every=1, probe_tolerance=1e-9, timeout_s=_TIMEOUT_S
            ),
        ),
        reference_updater=_reference_updater(algorithm.reference_every, policy, reference, watch),
        turns=DedicatedDevices(),
        evaluator=NoEvaluation(),
        watch=watch,
        observer=_Nobody(),
        saver=_Nobody(),
    )
    train(
        loop,
        LoopState(step=0, controllers=start_controllers(algorithm)),
        num_steps=config.num_steps,
    )
    return expected_reward(policy.table.weights)


def expected_reward(weights: Tensor) -> float:
    """Of the policy with these logits [prompts x positions, V], over the offset."""
    probabilities = weights.detach().softmax(dim=1)
    total = 0.0
    for prompt, (first, second) in enumerate(RIGHT):
        row = prompt * NUM_POSITIONS
        goes_on = 1 - probabilities[row, END]
        total += float(probabilities[row, first] + goes_on * probabilities[row + 1, second]) / 2
    return total / len(RIGHT)


def _pipeline(
    config: Config, engines: BanditEngines, watch: InProcessWatch, seed: int
) -> RolloutPipeline:
    return RolloutPipeline(
        prompts=BanditPrompts(seed),
        generators=engines,
        rewards=BanditRewards(by_step=config.algorithm.rewards_steps),
        watch=watch,
        failure_budget=FailureBudget(config.reward.max_failure_rate),
        settings=PipelineSettings(
            num_steps=config.num_steps,
            prompts_per_step=config.prompts_per_step,
            samples_per_prompt=config.samples_per_prompt,
            num_greedy=config.algorithm.num_greedy,
            max_staleness=config.max_staleness,
            generate_timeout_s=_TIMEOUT_S,
            sampling=config.sampling,
        ),
    )


def _trainer(
    config: Config,
    policy: BanditPolicy,
    critic: BanditCritic | None,
    watch: InProcessWatch,
    seed: int,
) -> Trainer:
    builder = ExperienceBuilder(
        algorithm=config.algorithm,
        learner=_PLAN,
        critic=_PLAN if critic else None,
        old_logprobs_from=config.old_logprobs_from,
        shaping=NO_SHAPING,
        seed=seed,
    )
    return Trainer(
        builder=BanditBuilder(builder),
        learner=policy,
        critic=critic or NoCritic(),
        texts=NoTexts(num_ranks=1),
        watch=watch,
        settings=TrainerSettings(
            build_timeout_s=_TIMEOUT_S,
            update_timeout_s=_TIMEOUT_S,
            critic_warmup_steps=config.algorithm.critic_warmup_steps,
        ),
    )


def _reference_updater(
    every_steps: int, policy: BanditPolicy, reference: BanditReference, watch: InProcessWatch
) -> ReferenceUpdater:
    if every_steps == 0:
        return NoReferenceUpdate()
    return PeriodicReferenceUpdater(
        policy=policy,
        reference=reference,
        watch=watch,
        settings=ReferenceUpdateSettings(
            every_steps=every_steps, bucket_bytes=1, timeout_s=_TIMEOUT_S
        ),
    )


class _Nobody:
    """Watches a run without a word, and saves nothing."""

    def phase(self, name: str) -> None:
        """Nothing to show."""

    def step_done(self, step: int, batch: Batch, metrics: dict[str, float]) -> None:
        """Nothing to note."""

    def save_if_due(self, state: LoopState, pipeline: RolloutPipeline) -> None:
        """Nothing to save."""
