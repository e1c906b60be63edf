"""A bandit with a known optimum, solved by the real driver with engine and learner in-process.

There are three prompts. The policy samples up to three tokens; after the first, an environment
inserts a token, which must not be trained on. The first and the second sampled token earn half a
point each if they are right for the prompt. The policy is a table of logits by prompt and
position, so that its expected reward is a short sum and no estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlhf_ray.batching.rank_plan import RankPlan
from rlhf_ray.config.groups.algorithm import AlgorithmConfig, OldLogprobsFrom
from rlhf_ray.config.run import Config
from rlhf_ray.driver.checkpoint_folders import Checkpoints
from rlhf_ray.driver.checkpoints import StepCheckpoints
from rlhf_ray.driver.evaluation.evaluator import NoEvaluation
from rlhf_ray.driver.loop import Loop, train
from rlhf_ray.driver.rollouts.failure_budget import FailureBudget
from rlhf_ray.driver.rollouts.pipeline import PipelineSettings, RolloutPipeline
from rlhf_ray.driver.run_checkpoints import LoopState, RunCheckpoints
from rlhf_ray.driver.run_log import NoRollouts, RunLog
from rlhf_ray.driver.updates.controllers import Controllers
from rlhf_ray.driver.updates.device_sharing import DedicatedDevices
from rlhf_ray.driver.updates.reference_update import (
    NoReferenceUpdate,
    PeriodicReferenceUpdater,
    ReferenceUpdater,
    ReferenceUpdateSettings,
)
from rlhf_ray.driver.updates.texts import NoTexts
from rlhf_ray.driver.updates.token_scores import NoTokenScores, TokenScorers
from rlhf_ray.driver.updates.trainer import NoCritic, Trainer, TrainerSettings
from rlhf_ray.experience.builder import ExperienceBuilder
from rlhf_ray.experience.reward_shaping import NO_SHAPING
from rlhf_ray.publish.base import TransferSettings, WeightReceivers
from rlhf_ray.publish.gate import Probe
from rlhf_ray.publish.object_store import ObjectStoreTransport
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
from rlhf_ray.testing.fake_waiter import InProcessWaiter

_TIMEOUT_S = 60.0
_PLAN = RankPlan(num_ranks=1, max_tokens_per_micro_batch=64)
_PROBE = Probe(sequences=((0, 1, 2, 3),))


def solve(config: Config, *, seed: int) -> float:
    """Train as configured; return the exact expected reward over the offset, at most 1."""
    algorithm = config.algorithm
    policy, waiter = BanditPolicy(algorithm), InProcessWaiter()
    critic = BanditCritic(algorithm) if config.needs_critic else None
    reference = BanditReference(decay=algorithm.reference_decay)
    scores_old = config.old_logprobs_from is OldLogprobsFrom.LEARNER_BEFORE_UPDATE
    engines = BanditEngines(policy.table.weights, greedy_from=config.samples_per_prompt)
    rollouts = PipelineSettings(
        num_steps=config.num_steps,
        prompts_per_step=config.prompts_per_step,
        samples_per_prompt=config.samples_per_prompt,
        num_greedy=algorithm.num_greedy,
        max_staleness=config.max_staleness,
        generate_timeout_s=_TIMEOUT_S,
        rollout_selection=config.rollout_selection,
        reward_tolerance=algorithm.reward_tolerance,
    )
    builder = _builder(algorithm, config.old_logprobs_from, critic is not None, seed)
    transport = _opened(policy, engines, waiter)
    loop = Loop(
        pipeline=RolloutPipeline(
            prompts=BanditPrompts(seed),
            generators=engines,
            rewards=BanditRewards(by_step=algorithm.rewards_steps),
            waiter=waiter,
            failure_budget=FailureBudget(config.reward.max_failure_rate),
            settings=rollouts,
        ),
        token_scorers=TokenScorers(
            reference=reference if config.needs_reference else NoTokenScores(),
            critic=critic or NoTokenScores(),
            old=policy if scores_old else NoTokenScores(),
            untrained=policy,
            num_untrained_steps=algorithm.critic_warmup_steps,
            waiter=waiter,
            timeout_s=_TIMEOUT_S,
        ),
        trainer=_trainer(builder, policy, critic, waiter, algorithm.critic_warmup_steps),
        publisher=Publisher(
            source=policy,
            receivers=engines,
            transport=transport,
            turns=DedicatedDevices(),
            waiter=waiter,
            probe=_PROBE,
            settings=PublishSettings(probe_every=1, probe_tolerance=1e-9, timeout_s=_TIMEOUT_S),
        ),
        reference_updater=_reference_updater(algorithm.reference_every, policy, reference, waiter),
        devices=DedicatedDevices(),
        evaluator=NoEvaluation(),
        waiter=waiter,
        log=RunLog(metrics=_Silent(), progress=_Silent(), rollouts=NoRollouts()),
        checkpoints=_no_checkpoints(waiter),
    )
    state = LoopState(step=0, controllers=Controllers.start(algorithm))
    train(loop, state, num_steps=config.num_steps)
    return expected_reward(policy.table.weights)


def expected_reward(weights: Tensor) -> float:
    """Expected reward over the offset of a policy with logits [prompts x positions, V]."""
    probabilities = weights.detach().softmax(dim=1)
    total = 0.0
    for prompt, (first, second) in enumerate(RIGHT):
        row = prompt * NUM_POSITIONS
        goes_on = 1 - probabilities[row, END]
        total += float(probabilities[row, first] + goes_on * probabilities[row + 1, second]) / 2
    return total / len(RIGHT)


def _builder(
    algorithm: AlgorithmConfig, old: OldLogprobsFrom, has_critic: bool, seed: int
) -> ExperienceBuilder:
    return ExperienceBuilder(
        algorithm=algorithm,
        learner=_PLAN,
        critic=_PLAN if has_critic else None,
        old_logprobs_from=old,
        shaping=NO_SHAPING,
        seed=seed,
    )


def _trainer(
    builder: ExperienceBuilder,
    policy: BanditPolicy,
    critic: BanditCritic | None,
    waiter: InProcessWaiter,
    critic_warmup_steps: int,
) -> Trainer:
    return Trainer(
        builder=BanditBuilder(builder),
        learner=policy,
        critic=critic or NoCritic(),
        texts=NoTexts(num_ranks=1),
        waiter=waiter,
        settings=TrainerSettings(
            build_timeout_s=_TIMEOUT_S,
            update_timeout_s=_TIMEOUT_S,
            critic_warmup_steps=critic_warmup_steps,
        ),
    )


def _reference_updater(
    every_steps: int, policy: BanditPolicy, reference: BanditReference, waiter: InProcessWaiter
) -> ReferenceUpdater:
    if every_steps == 0:
        return NoReferenceUpdate()
    return PeriodicReferenceUpdater(
        policy=policy,
        reference=reference,
        transport=_opened(policy, reference, waiter),
        waiter=waiter,
        settings=ReferenceUpdateSettings(every_steps=every_steps, timeout_s=_TIMEOUT_S),
    )


def _opened(
    policy: BanditPolicy, receivers: WeightReceivers, waiter: InProcessWaiter
) -> ObjectStoreTransport:
    """A transport of one bucket per update, because the fakes hand out the whole table."""
    settings = TransferSettings(bucket_bytes=1, phase="publish", timeout_s=_TIMEOUT_S)
    transport = ObjectStoreTransport(waiter, settings)
    transport.open(policy, receivers)
    return transport


def _no_checkpoints(waiter: InProcessWaiter) -> RunCheckpoints:
    return RunCheckpoints(
        StepCheckpoints(
            Checkpoints(Path("unused"), keep_last=1),
            roles={},
            waiter=waiter,
            every_steps=0,
            timeout_s=_TIMEOUT_S,
            identity={},
        ),
        texts=NoTexts(num_ranks=1),
        evaluator=NoEvaluation(),
    )


class _Silent:
    """Metrics writer and progress that record and show nothing."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def expect(self, num_steps: int) -> None: ...

    def phase(self, name: str) -> None: ...

    def message(self, text: str) -> None: ...

    def step_done(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
